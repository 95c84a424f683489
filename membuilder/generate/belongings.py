"""Facts told once that last: possessions, home, skills, habits, wishes."""

from membuilder.generate.topics import Topic, single

BELONGINGS = (
    Topic(
        name="kept_where",
        domain="things",
        stages=(
            (
                "I keep my {keepsake} {spot}.",
                "My {keepsake} is always {spot}, so I never lose it.",
                "You would never guess, the {keepsake} is {spot}.",
                "We store the {keepsake} {spot}.",
                "The {keepsake} belongs {spot} in our house.",
                "For safety my {keepsake} stays {spot}.",
                "In my place the {keepsake} goes {spot}.",
                "I put the {keepsake} {spot} and that is its home.",
            ),
        ),
        asks=(
            single(
                "Where does {name} keep the {keepsake}?",
                "In which place is {name}'s {keepsake} stored?",
                answer="{spot}",
            ),
        ),
    ),
    Topic(
        name="table",
        domain="home",
        stages=(
            (
                "We went with {wood} for the kitchen table.",
                "Our kitchen table is made of {wood}.",
                "The new table is {wood}, it weighs a ton.",
                "I wanted a kitchen table in {wood}, and I got it.",
                "For the table we chose {wood}, scratches and all.",
                "A carpenter built us a table out of {wood}.",
                "You have to feel our table, it is real {wood}.",
                "I oil our kitchen table regularly because {wood} stains easily.",
            ),
        ),
        asks=(
            single(
                "What is {name}'s kitchen table made of?",
                "Which material did {name} choose for the table?",
                answer="{wood}",
            ),
        ),
    ),
    Topic(
        name="heirloom",
        domain="things",
        stages=(
            (
                "I inherited a {heirloom} from my great aunt.",
                "The {heirloom} I own has been in the family for generations.",
                "My grandfather left me his old {heirloom}.",
                "The most precious thing I own is an inherited {heirloom}.",
                "My only family heirloom is a {heirloom}.",
                "I would save the {heirloom} from a fire, it was my grandmother's.",
                "There is a {heirloom} here that belonged to my ancestors.",
                "The family passed its {heirloom} down to me.",
            ),
        ),
        asks=(
            single("Which heirloom did {name} inherit?", "What family heirloom does {name} own?", answer="{heirloom}"),
        ),
    ),
    Topic(
        name="skill",
        domain="hobby",
        stages=(
            (
                "I can {skill}, a useless but fun talent.",
                "My party trick is that I can {skill}.",
                "Few people know that I can {skill}.",
                "I taught myself how to {skill}.",
                "My hidden talent is knowing how to {skill}.",
                "Believe it or not, I am able to {skill}.",
                "My grandpa showed me how to {skill}, and I still can.",
                "Ask me to {skill}, I do it without thinking.",
            ),
        ),
        asks=(
            single(
                "What is {name} able to do as a special talent?",
                "What is {name}'s party trick or hidden talent?",
                answer="{skill}",
            ),
        ),
    ),
    Topic(
        name="tattoo",
        domain="things",
        stages=(
            (
                "I have a {tattoo} tattooed on my {body}.",
                "The tattoo on my {body} shows a {tattoo}.",
                "There is a tiny {tattoo} inked on my {body}.",
                "My mother hates the {tattoo} tattoo on my {body}.",
                "I designed the {tattoo} tattoo on my {body} myself.",
                "On my {body} you can see my tattoo, a {tattoo}.",
                "My only tattoo is a {tattoo}, on the {body}.",
                "I got a {tattoo} tattoo, it covers my {body}.",
            ),
        ),
        asks=(
            single("What does {name}'s tattoo show?", answer="{tattoo}"),
            single("Where on the body does {name} have a tattoo?", answer="{body}"),
        ),
    ),
    Topic(
        name="volunteering",
        domain="work",
        stages=(
            (
                "I volunteer for {cause}, unpaid but rewarding.",
                "I help out at {cause} without pay.",
                "My free afternoons go to {cause}, as a volunteer.",
                "I am one of the volunteers of {cause}.",
                "Volunteering with {cause} keeps me grounded.",
                "I joined {cause} as a helper, they need hands.",
                "You can find me at {cause}, handing out tea as a volunteer.",
                "The people at {cause} count on me as a volunteer.",
            ),
        ),
        asks=(
            single("Where does {name} volunteer?", "Which cause does {name} help as a volunteer?", answer="{cause}"),
        ),
    ),
    Topic(
        name="game_evening",
        domain="hobby",
        stages=(
            (
                "Every {weekday} we play {game} at my place.",
                "{weekday} is our {game} evening, friends only.",
                "I host a {game} round each {weekday}.",
                "We have a regular {game} night on {weekday}.",
                "My friends come over for {game} every {weekday}.",
                "On {weekday} evenings I always play {game}.",
                "Our weekly {game} group meets on {weekday}.",
                "There is {game} at my house every single {weekday}.",
            ),
        ),
        asks=(
            single(
                "On which day does {name} play {game}?", "Which weekday is {name}'s {game} evening?", answer="{weekday}"
            ),
            single("Which game does {name} play every week with friends?", answer="{game}"),
        ),
    ),
    Topic(
        name="crop",
        domain="home",
        stages=(
            (
                "I grow {crop} on the balcony.",
                "My vegetable patch is mostly {crop}.",
                "The {crop} in my garden are doing well.",
                "I raise {crop} from seed on the windowsill.",
                "We have so many {crop} in the garden that I give them away.",
                "In my allotment I only plant {crop}.",
                "My garden soil is perfect for {crop}.",
                "I have a raised bed full of {crop}.",
            ),
        ),
        asks=(
            single(
                "What does {name} grow in the garden or on the balcony?",
                "Which crop does {name} grow?",
                answer="{crop}",
            ),
        ),
    ),
    Topic(
        name="business",
        domain="work",
        stages=(
            (
                "My dream is to open {business}.",
                "One day I want to run {business}, I have a plan.",
                "If I had the money I would open {business}.",
                "I keep a notebook for the day I open {business}.",
                "What I really want in life is {business} of my own.",
                "My secret dream, owning {business}, will not leave me alone.",
                "I am putting money aside to start {business}.",
                "Someday there will be {business} with my name on the door.",
            ),
        ),
        asks=(
            single(
                "What kind of business does {name} dream of opening?",
                "What does {name} want to open one day?",
                answer="{business}",
            ),
        ),
    ),
    Topic(
        name="neighbour_favour",
        domain="home",
        stages=(
            (
                "{first} from next door waters my plants when I travel.",
                "My neighbour {first} takes in all my parcels.",
                "I trust my neighbour {first} with the house keys.",
                "The neighbour across the hall is called {first}.",
                "{first} next door fixes anything, what a neighbour.",
                "My neighbour {first} lends me her ladder.",
                "I feed the fish of my neighbour {first}.",
                "We share a garden with our neighbour {first}.",
            ),
        ),
        asks=(single("What is the name of {name}'s neighbour?", "Who is {name}'s neighbour?", answer="{first}"),),
    ),
)

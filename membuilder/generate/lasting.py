"""Facts told once that last: food, health, origins, tastes."""

from membuilder.generate.topics import Topic, single

LASTING = (
    Topic(
        name="allergy",
        domain="health",
        stages=(
            (
                "Careful with the cake, {allergen} make my throat swell up.",
                "Turns out I am allergic to {allergen}.",
                "The test came back, my body cannot handle {allergen}.",
                "Anything containing {allergen} sends me to hospital.",
                "I carry an emergency pen because of {allergen}.",
                "Even a trace of {allergen} gives me hives.",
                "I break out in a rash from {allergen}.",
                "Please leave out {allergen}, otherwise I stop breathing.",
                "{allergen} and I do not mix, my lips go numb.",
            ),
        ),
        asks=(single("What is {name} allergic to?", "Which allergy does {name} have?", answer="{allergen}"),),
    ),
    Topic(
        name="favourite_dish",
        domain="food",
        stages=(
            (
                "I could eat {dish} until I burst.",
                "If I had to pick a last meal, it would be {dish}.",
                "Nothing beats {dish}, it is my absolute favourite dish.",
                "My favourite thing to eat is {dish}.",
                "You can always win me over with {dish}.",
                "The way to my heart is {dish}.",
                "I order {dish} wherever it is on the menu.",
                "As a child I already adored {dish}, my favourite.",
            ),
        ),
        asks=(single("What is {name}'s favourite dish?", "Which meal does {name} love most?", answer="{dish}"),),
    ),
    Topic(
        name="disliked_food",
        domain="food",
        stages=(
            (
                "I cannot stand {food}, even the smell is too much.",
                "The one thing I refuse to eat is {food}.",
                "Keep {food} far away from my plate.",
                "I pick every bit of {food} out of my salad.",
                "The taste of {food} makes me gag.",
                "Serve me anything, just not {food}.",
                "I have hated {food} all my life.",
                "My family teases me because I never touch {food}.",
            ),
        ),
        asks=(single("Which food does {name} hate?", "What food does {name} refuse to eat?", answer="{food}"),),
    ),
    Topic(
        name="hometown",
        domain="home",
        stages=(
            (
                "I grew up in {city}, above my parents' shop.",
                "My childhood was spent in {city}.",
                "Originally I come from {city}, you can hear the accent.",
                "I was born and raised in {city}.",
                "All my school years were in {city}.",
                "{city} is my hometown, my parents never left.",
                "As a kid in {city} I knew every alley.",
                "My roots are in {city}, I grew up there.",
            ),
        ),
        asks=(single("Where did {name} grow up?", "What is {name}'s hometown?", answer="{city}"),),
    ),
    Topic(
        name="studies",
        domain="work",
        stages=(
            (
                "I have a degree in {subject}, not that it helps.",
                "At university I studied {subject}.",
                "My diploma says {subject}, hard to believe.",
                "I once wrote a whole thesis in {subject}.",
                "{subject} was my major, back in my student days.",
                "I spent five years studying {subject}.",
                "My parents wanted me to study {subject}, and I did.",
                "I graduated in {subject} with decent marks.",
            ),
        ),
        asks=(
            single("What did {name} study at university?", "What subject is {name}'s degree in?", answer="{subject}"),
        ),
    ),
    Topic(
        name="fear",
        domain="health",
        stages=(
            (
                "I am terrified of {fear}, always have been.",
                "My knees turn to jelly because of {fear}.",
                "Do not laugh, {fear} scare me to death.",
                "I panic when it comes to {fear}.",
                "My biggest phobia is {fear}.",
                "{fear} are my worst nightmare.",
                "I will do anything to avoid {fear}, pure terror.",
                "I scream like a child because of {fear}.",
            ),
        ),
        asks=(single("What is {name} afraid of?", "Which phobia does {name} have?", answer="{fear}"),),
    ),
    Topic(
        name="ailment",
        domain="health",
        stages=(
            (
                "I live with {ailment}, so I take it slowly.",
                "My doctor says I have {ailment}.",
                "Because of {ailment} I am not allowed to lift things.",
                "I was diagnosed with {ailment}.",
                "The pills I take are for {ailment}.",
                "I see a specialist about {ailment}.",
                "Sport is difficult for me, I have {ailment}.",
                "{ailment} runs in my family, and I have it too.",
            ),
        ),
        asks=(
            single(
                "Which medical condition does {name} have?",
                "What health problem was {name} diagnosed with?",
                answer="{ailment}",
            ),
        ),
    ),
    Topic(
        name="colour",
        domain="taste",
        stages=(
            (
                "My favourite colour is {colour}, no contest.",
                "I would paint the whole world {colour} if I could.",
                "Half my wardrobe is {colour}, I love that colour.",
                "Give me anything in {colour} and I am happy.",
                "{colour} is the only colour I never get tired of.",
                "I always pick {colour}, it is my colour.",
                "The colour that suits me best is {colour}.",
                "My friends know I adore the colour {colour}.",
            ),
        ),
        asks=(single("What is {name}'s favourite colour?", answer="{colour}"),),
    ),
    Topic(
        name="band",
        domain="taste",
        stages=(
            (
                "My favourite band is {band}, I know every lyric.",
                "I have loved {band} since I was fifteen.",
                "Nobody writes songs like {band}, my favourite group.",
                "I own every record {band} ever made.",
                "The music I always come back to is {band}.",
                "{band} got me through school, best band ever.",
                "If you want to see me dance, play {band}.",
                "I am the biggest fan of {band} in this town.",
            ),
        ),
        asks=(single("What is {name}'s favourite band?", "Which music group is {name} a fan of?", answer="{band}"),),
    ),
    Topic(
        name="film",
        domain="taste",
        stages=(
            (
                "My favourite film of all time is {film}.",
                "I can quote every line of {film}, I adore that film.",
                "No movie comes close to {film} for me.",
                "{film} is the film I would take to an island.",
                "I cry at the end of {film} each time, best film ever.",
                "The best movie ever made is {film}, fight me.",
                "I have the poster of {film}, my favourite movie.",
                "The film that changed me was {film}.",
            ),
        ),
        asks=(single("What is {name}'s favourite film?", "Which movie does {name} love most?", answer="{film}"),),
    ),
    Topic(
        name="team",
        domain="taste",
        stages=(
            (
                "I support {team}, win or lose.",
                "I have a season ticket for {team}.",
                "My blood runs in the colours of {team}.",
                "My whole family roots for {team}.",
                "{team} are my team until I die.",
                "I never miss a home game of {team}, my team.",
                "Being a fan of {team} is mostly suffering.",
                "As a supporter of {team} I am used to losing.",
            ),
        ),
        asks=(single("Which team does {name} support?", "What sports team is {name} a fan of?", answer="{team}"),),
    ),
    Topic(
        name="restaurant",
        domain="food",
        stages=(
            (
                "The best place to eat in town is {restaurant}.",
                "{restaurant} is my favourite restaurant, hands down.",
                "We celebrate every birthday at {restaurant}.",
                "I am a regular at {restaurant}, they know my order.",
                "For a good dinner I always book {restaurant}.",
                "My go to restaurant is {restaurant}.",
                "The owner of {restaurant} greets me by name, I dine there weekly.",
                "If you ever visit, we will eat at {restaurant}, my favourite.",
            ),
        ),
        asks=(
            single(
                "What is {name}'s favourite restaurant?",
                "Which restaurant does {name} always go to?",
                answer="{restaurant}",
            ),
        ),
    ),
)

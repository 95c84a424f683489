"""Facts told once that last: relatives and what they do, own and want."""

from membuilder.generate.topics import Topic, single

FAMILY = (
    Topic(
        name="relative_job",
        domain="family",
        stages=(
            (
                "My {relative} {first} works as {job}.",
                "{first}, my {relative}, makes a living as {job}.",
                "In our family the {relative}, {first}, is {job}.",
                "My {relative} is {job}, and {first} is very good at it.",
                "I am proud of {first}, my {relative} the expert, {job} by trade.",
                "You might meet my {relative} {first}, {job} in the old town.",
                "My {relative} {first} trained to be {job}.",
                "Ask {first}, my {relative} is {job} after all.",
            ),
        ),
        asks=(
            single(
                "What does {name}'s {relative} {first} do for a living?",
                "What is the job of {name}'s {relative}?",
                answer="{job}",
            ),
        ),
    ),
    Topic(
        name="child",
        domain="family",
        stages=(
            (
                "My daughter {first} is {age} and talks nonstop.",
                "{first} is my only child, {age} years old.",
                "My child is {age} and keeps us busy, little {first}.",
                "My kid {first} turned {age} and wants a drum set.",
                "Being the parent of {first} at age {age} is exhausting.",
                "Our son {first}, {age} years old, draws on every wall.",
                "My youngest, {first}, is {age} already.",
                "At {age} years old my child {first} reads better than me.",
            ),
        ),
        asks=(
            single("What is the name of {name}'s child?", answer="{first}"),
            single("How old is {name}'s child {first}?", answer="{age}"),
        ),
    ),
    Topic(
        name="partner",
        domain="family",
        stages=(
            (
                "I am married to {first}, we met in a laundrette.",
                "{first} and I have been a couple since university.",
                "My partner {first} is the calm one of us.",
                "My better half is called {first}.",
                "I fell for {first} at a bus stop, now we are married.",
                "{first} is the love of my life, we live together.",
                "My spouse {first} snores like a bear.",
                "We are engaged, {first} and I.",
            ),
        ),
        asks=(single("Who is {name}'s partner?", "What is the name of {name}'s spouse or partner?", answer="{first}"),),
    ),
    Topic(
        name="gift_wish",
        domain="family",
        stages=(
            (
                "My mother wants {gift} for her birthday.",
                "The perfect present for my mother would be {gift}.",
                "My mum keeps hinting at {gift} as a present.",
                "For mum's birthday we are all chipping in for {gift}.",
                "My mother has wished for {gift} for years.",
                "I should get {gift} for my mother, she asked for it.",
                "On mum's wish list there is only {gift}.",
                "All my mother asks for as a gift is {gift}.",
            ),
        ),
        asks=(
            single(
                "What birthday present does {name}'s mother want?",
                "Which gift does {name}'s mother wish for?",
                answer="{gift}",
            ),
        ),
    ),
    Topic(
        name="parents_street",
        domain="family",
        subject="parents_home",
        stages=(
            (
                "My parents have a house on {street}.",
                "Mum and dad live on {street}, next to the church.",
                "The family home is on {street}, with the green door.",
                "My parents bought a place on {street}.",
                "My folks still live on {street}, same house as ever.",
                "You can find my parents on {street}.",
                "My mum and dad are on {street}, ground floor.",
                "{street} is where my parents live.",
            ),
        ),
        asks=(
            single(
                "On which street do {name}'s parents live?",
                "What street is {name}'s parents' house on?",
                answer="{street}",
            ),
        ),
    ),
    Topic(
        name="divorce_year",
        domain="family",
        subject="parents_home",
        stages=(
            (
                "My parents split up in {year}, it was hard on me.",
                "In {year} my parents got divorced.",
                "The divorce of my parents was in {year}.",
                "My mum left my dad in {year}.",
                "I was there when my parents separated in {year}.",
                "Since {year} my parents live apart, they are divorced.",
                "My folks ended their marriage in {year}.",
                "It was {year} when my parents signed the divorce papers.",
            ),
        ),
        asks=(
            single(
                "In which year did {name}'s parents divorce?",
                "What year did {name}'s parents separate?",
                answer="{year}",
            ),
        ),
    ),
    Topic(
        name="speciality",
        domain="family",
        stages=(
            (
                "Everyone begs my dad for his {dish}.",
                "My father is known for his {dish}.",
                "Nobody cooks {dish} like my dad.",
                "My dad's speciality is {dish}, a secret recipe.",
                "At family parties my father always cooks {dish}.",
                "My dad won a village contest with his {dish}.",
                "Dad refuses to share how he makes his {dish}.",
                "When my father cooks, it has to be {dish}.",
            ),
        ),
        asks=(
            single("What dish is {name}'s father known for?", "What does {name}'s dad always cook?", answer="{dish}"),
        ),
    ),
    Topic(
        name="wedding_song",
        domain="family",
        stages=(
            (
                "Our wedding song was by {band}.",
                "We danced to {band} at our wedding.",
                "{band} played at our wedding, a dream come true.",
                "Our first dance as a couple was to {band}.",
                "For the wedding dance we chose {band}.",
                "The song of our wedding came from {band}.",
                "At our wedding everyone sang along to {band}.",
                "I walked down the aisle to {band}.",
            ),
        ),
        asks=(
            single(
                "Which band's music was played at {name}'s wedding?",
                "Whose song did {name} dance to at the wedding?",
                answer="{band}",
            ),
        ),
    ),
)

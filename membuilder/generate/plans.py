"""Things that will happen once: every template has a time phrase, and the question asks for the date."""

from membuilder.generate.topics import Topic, single, when

PLANS = (
    Topic(
        name="relative_wedding_future",
        domain="family",
        subject="relative_wedding",
        stages=(
            (
                "My {relative} is getting married {future}.",
                "The wedding of my {relative} is {future}, I need shoes.",
                "{future} is the big day, my {relative}'s wedding.",
                "I am the witness at my {relative}'s wedding {future}.",
                "We are all invited to the wedding of my {relative} {future}.",
                "My {relative} will marry {first} {future}.",
                "I am writing a speech, my {relative} gets married {future}.",
                "{future} my {relative} says yes at the altar.",
            ),
        ),
        asks=(
            when("When is the wedding of {name}'s {relative}?", "On what date does {name}'s {relative} get married?"),
        ),
    ),
    Topic(
        name="surgery",
        domain="health",
        stages=(
            (
                "My eye surgery is {future}, I am nervous.",
                "{future} I finally get my eyes operated on.",
                "The hospital gave me a date for eye surgery, {future}.",
                "I go into hospital {future} for the operation on my eyes.",
                "They will laser my eyes {future}.",
                "I have to fast because my eye operation is {future}.",
                "My eye operation was confirmed, it is {future}.",
                "No more glasses, my eye surgery happens {future}.",
            ),
        ),
        asks=(when("When is {name}'s eye surgery?", "On what date will {name} have the eye operation?"),),
    ),
    Topic(
        name="interview",
        domain="work",
        stages=(
            (
                "I have a job interview at {employer} {future}.",
                "{future} is my interview with {employer}.",
                "{employer} invited me to an interview {future}.",
                "I am preparing for the {employer} interview {future}.",
                "Wish me luck, {employer} interviews me {future}.",
                "The interview at {employer} is set for {future}.",
                "{employer} wants to meet me {future} for a job interview.",
                "I ironed my shirt for the interview at {employer} {future}.",
            ),
        ),
        asks=(
            when("When is {name}'s job interview at {employer}?", "On what date does {name} have the interview?"),
            single("Which company invited {name} to a job interview?", answer="{employer}"),
        ),
    ),
    Topic(
        name="exhibition",
        domain="hobby",
        stages=(
            (
                "My photographs will be shown in a gallery {future}.",
                "{future} my first photo exhibition opens.",
                "The opening of my photo exhibition is {future}.",
                "I am hanging my photos, the exhibition starts {future}.",
                "A gallery shows my pictures {future}, my first exhibition.",
                "Come to my photo exhibition, it opens {future}.",
                "My own photo exhibition begins {future}, I cannot believe it.",
                "They printed the flyers, my exhibition opens {future}.",
            ),
        ),
        asks=(when("When does {name}'s photo exhibition open?", "What is the opening date of {name}'s exhibition?"),),
    ),
    Topic(
        name="parents_visit",
        domain="family",
        stages=(
            (
                "My parents are coming to stay {future}.",
                "{future} my parents visit me for the first time.",
                "I have to tidy up, my parents arrive {future}.",
                "The guest bed is ready, my parents come {future}.",
                "My mum and dad visit me {future}.",
                "I pick my parents up from the station {future}.",
                "{future} mum and dad arrive for a long visit.",
                "My parents have booked trains to visit me {future}.",
            ),
        ),
        asks=(when("When are {name}'s parents coming to visit?", "On what date do {name}'s parents arrive?"),),
    ),
    Topic(
        name="performance",
        domain="hobby",
        stages=(
            (
                "Our theatre group performs {future}, I play the villain.",
                "{future} I stand on stage with the theatre group.",
                "The premiere of our play is {future}.",
                "I have a big part in the play, opening night is {future}.",
                "My theatre premiere is {future} and I forget my lines.",
                "We rehearse like mad, our play opens {future}.",
                "Our amateur play has its premiere {future}.",
                "{future} the curtain goes up for our play.",
            ),
        ),
        asks=(when("When is the premiere of {name}'s play?", "On what date does {name}'s theatre group perform?"),),
    ),
)

"""Things that happened once: every template has a time phrase, and the question asks for the date."""

from membuilder.generate.topics import Topic, single, when

EVENTS = (
    Topic(
        name="half_marathon",
        domain="health",
        stages=(
            (
                "I ran my first half marathon {past}.",
                "{past} I crossed the finish line of my first half marathon.",
                "My first half marathon was {past}, my toes are black.",
                "I did it, I finished a half marathon {past}.",
                "{past} I ran a half marathon in the pouring rain.",
                "I got a medal {past}, it was my first half marathon.",
                "They cheered so loudly at my half marathon {past}.",
                "The half marathon {past} nearly killed me, but I finished.",
            ),
        ),
        asks=(when("When did {name} run the half marathon?", "What was the date of {name}'s first half marathon?"),),
    ),
    Topic(
        name="driving_test",
        domain="things",
        stages=(
            (
                "I passed my driving test {past}.",
                "{past} I got my driving licence at last.",
                "Guess who passed the driving test {past}.",
                "My driving licence came through {past}, third attempt.",
                "The examiner let me pass my driving test {past}.",
                "I am allowed to drive, I passed the test {past}.",
                "{past} I finally did it, driving test passed.",
                "My driving test was {past} and I passed without a mistake.",
            ),
        ),
        asks=(when("When did {name} pass the driving test?", "When did {name} get the driving licence?"),),
    ),
    Topic(
        name="concert_seen",
        domain="taste",
        stages=(
            (
                "I saw {band} live {past}, my ears still ring.",
                "{past} we went to a concert of {band}.",
                "{band} played in town {past} and I stood in the front row.",
                "The concert of {band} {past} was pure magic.",
                "I finally heard {band} in concert {past}.",
                "We had tickets for {band} {past}, what a concert.",
                "{past} I lost my voice at a concert of {band}.",
                "My sister took me to see {band} {past}.",
            ),
        ),
        asks=(
            when("When did {name} see {band} in concert?", "On what date did {name} go to a concert of {band}?"),
            single("Which band did {name} see live in concert?", answer="{band}"),
        ),
    ),
    Topic(
        name="promotion",
        domain="work",
        stages=(
            (
                "I got promoted {past}, a bit more money too.",
                "{past} my boss gave me the promotion.",
                "My promotion became official {past}.",
                "They announced my promotion {past} in front of everyone.",
                "I was made head of the department {past}, a real promotion.",
                "{past} I got the promotion I had asked for.",
                "The letter about my promotion arrived {past}.",
                "We opened a bottle {past} because of my promotion.",
            ),
        ),
        asks=(when("When did {name} get promoted?", "On what date did {name} get the promotion?"),),
    ),
    Topic(
        name="broken_bone",
        domain="health",
        stages=(
            (
                "I broke my {bone} {past}, so I am in plaster.",
                "{past} I slipped and fractured my {bone}.",
                "My {bone} is broken, it happened {past} on the stairs.",
                "I fell off a ladder {past} and broke my {bone}.",
                "They put my {bone} in a cast {past}, it is fractured.",
                "{past} I ended up in surgery for my broken {bone}.",
                "I fractured my {bone} {past} during a football match.",
                "The scan {past} showed that my {bone} is broken.",
            ),
        ),
        asks=(
            when("When did {name} break the {bone}?", "On what date did {name} fracture a bone?"),
            single("Which part of the body did {name} fracture?", answer="{bone}"),
        ),
    ),
    Topic(
        name="bought_appliance",
        domain="things",
        stages=(
            (
                "I bought a {appliance} {past}, a bargain.",
                "{past} the new {appliance} I paid for was delivered.",
                "We treated ourselves to a {appliance} {past}.",
                "I found a second hand {appliance} {past} and bought it.",
                "{past} I spent all my savings on a {appliance}.",
                "My new {appliance} arrived {past}, it works like a dream.",
                "I got myself a {appliance} {past}.",
                "The shop had one {appliance} left, I bought it {past}.",
            ),
        ),
        asks=(when("When did {name} buy the {appliance}?", "On what date did {name} get the new {appliance}?"),),
    ),
    Topic(
        name="relative_wedding_past",
        domain="family",
        subject="relative_wedding",
        stages=(
            (
                "My {relative} got married {past}, I cried.",
                "{past} we danced all night at my {relative}'s wedding.",
                "I gave a speech at the wedding of my {relative} {past}.",
                "My {relative} and {first} had their wedding {past}.",
                "The wedding of my {relative} was {past}, in a barn.",
                "I carried the rings {past} when my {relative} got married.",
                "{past} my {relative} married {first} in the town hall.",
                "We threw rice {past} at my {relative}'s wedding.",
            ),
        ),
        asks=(
            when("When was the wedding of {name}'s {relative}?", "On what date did {name}'s {relative} get married?"),
        ),
    ),
    Topic(
        name="baby",
        domain="family",
        stages=(
            (
                "My {relative} had a baby {past}, a girl named {first}.",
                "{past} I became a proud relative, my {relative}'s baby {first} was born.",
                "Little {first} was born {past}, my {relative} is over the moon.",
                "The baby of my {relative} arrived {past}, they call him {first}.",
                "{past} my {relative} gave birth to {first}.",
                "My {relative} sent photos, baby {first} was born {past}.",
                "There is a new baby in the family since {past}, my {relative}'s {first}.",
                "I held my {relative}'s newborn {first}, born {past}.",
            ),
        ),
        asks=(
            when("When was {first}, the baby of {name}'s {relative}, born?"),
            single("What is the name of the baby of {name}'s {relative}?", answer="{first}"),
        ),
    ),
    Topic(
        name="exam_passed",
        domain="work",
        stages=(
            (
                "I passed my {exam} exam {past}.",
                "{past} they handed me my {exam} certificate.",
                "My {exam} exam went well {past}, I am certified.",
                "I finished the {exam} course {past} with top marks.",
                "The {exam} certificate is mine since {past}.",
                "{past} I sat the {exam} exam and passed.",
                "I got my {exam} qualification {past}.",
                "We celebrated {past} because I passed the {exam} exam.",
            ),
        ),
        asks=(when("When did {name} pass the {exam} exam?", "On what date did {name} get the {exam} certificate?"),),
    ),
    Topic(
        name="camping",
        domain="travel",
        stages=(
            (
                "We went camping in {place} {past}.",
                "{past} I slept in a tent in {place}.",
                "I came back from camping in {place} {past}.",
                "The camping trip to {place} {past} was wet but lovely.",
                "We pitched our tent in {place} {past} and saw deer.",
                "{past} the kids and I camped in {place}.",
                "I took my tent to {place} {past}, no signal at all.",
                "Our camping weekend in {place} was {past}.",
            ),
        ),
        asks=(
            when("When did {name} go camping in {place}?", "What was the date of {name}'s camping trip to {place}?"),
            single("Where did {name} go camping?", answer="{place}"),
        ),
    ),
    Topic(
        name="stolen",
        domain="things",
        stages=(
            (
                "Somebody stole my bicycle {past}.",
                "My bike was stolen {past}, the lock was cut.",
                "{past} a thief took my bicycle from the yard.",
                "I reported a stolen bicycle to the police {past}.",
                "The bicycle I loved got stolen {past}.",
                "They broke into the shed {past} and took my bike.",
                "{past} my bicycle vanished, stolen in broad daylight.",
                "I had my bike stolen {past} outside the library.",
            ),
        ),
        asks=(when("When was {name}'s bicycle stolen?", "On what date did a thief take {name}'s bike?"),),
    ),
)

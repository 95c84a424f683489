"""Facts that change, told in two sessions: health, food, vehicles, weekly habits."""

from membuilder.generate.topics import Topic, both, now, when

CHANGES_BODY = (
    Topic(
        name="vehicle",
        domain="things",
        stages=(
            (
                "I get around in {vehicle}, and it never lets me down.",
                "My only vehicle is {vehicle}, and I adore it.",
                "I own {vehicle}, it needs new tyres though.",
                "For getting to work I have {vehicle}.",
                "You can hear me coming, I drive {vehicle}.",
                "My uncle sold me {vehicle} for a fair price.",
                "I do all my shopping trips with {vehicle}.",
                "What I ride every day is {vehicle}, rain or shine.",
            ),
            (
                "I sold my old ride and bought {vehicle2} {past}.",
                "My new vehicle is {vehicle2}, far cheaper to run.",
                "I get around with {vehicle2} now, the old one broke down.",
                "{past} I picked up my new vehicle, {vehicle2}.",
                "I traded my old wheels in for {vehicle2}.",
                "The repair was too expensive, so I drive {vehicle2} now.",
                "Parked outside is my latest purchase, {vehicle2}.",
                "I replaced my old vehicle with {vehicle2} {past}.",
            ),
        ),
        asks=(
            now(
                "What vehicle does {name} use to get around now?", "What is {name}'s new vehicle?", answer="{vehicle2}"
            ),
            both(
                "What vehicle did {name} own before, and what replaced it?",
                "What were {name}'s old and new vehicle?",
                answer="first {vehicle}, now {vehicle2}",
            ),
            when("When did {name} buy the new vehicle, {vehicle2}?", stage=1),
        ),
    ),
    Topic(
        name="diet",
        domain="food",
        stages=(
            (
                "I eat {diet} for health reasons.",
                "No thanks, my diet is strictly {diet}.",
                "Cooking {diet} is easier than people think.",
                "My doctor put me on a {diet} diet.",
                "The whole household eats {diet}, no exceptions.",
                "I went {diet} and my skin cleared up.",
                "Restaurants are tricky when you eat {diet} like me.",
                "My meals are all {diet}, I feel lighter.",
            ),
            (
                "I changed my diet, I eat {diet2} now.",
                "The old diet did not work, so I am {diet2} these days.",
                "My meals are {diet2} now, the dietician insisted.",
                "I switched over to {diet2} eating {past}.",
                "New blood results, so my diet has to be {diet2}.",
                "I gave up my previous diet for a {diet2} one.",
                "Since {past} I cook only {diet2} food.",
                "It turns out a {diet2} diet agrees with me far better.",
            ),
        ),
        asks=(
            now("What diet does {name} follow now?", "Which diet did {name} change to?", answer="{diet2}"),
            both(
                "What diet did {name} follow before, and what diet now?",
                "What were {name}'s old and new diet?",
                answer="first {diet}, now {diet2}",
            ),
            when("When did {name} switch to the {diet2} diet?", stage=1),
        ),
    ),
    Topic(
        name="drink",
        domain="food",
        stages=(
            (
                "My drink of choice is {drink}, three cups at least.",
                "Nothing gets me going like {drink}.",
                "I always order {drink}, the waiter does not even ask.",
                "If you come over, I will serve you {drink}, my usual drink.",
                "I drink {drink} all day long.",
                "{drink} is the only drink I never tire of.",
                "My kitchen is stocked with {drink}, my favourite drink.",
                "I could live on {drink} alone.",
            ),
            (
                "I have given up my usual drink, now it is {drink2}.",
                "My stomach complained, so these days I drink {drink2}.",
                "My new favourite drink is {drink2}.",
                "I swapped my usual cup for {drink2}.",
                "I only order {drink2} now, my habits changed.",
                "The dentist told me off, so I drink {drink2} instead.",
                "You will find {drink2} in my mug from now on.",
                "I am a convert, {drink2} is my regular drink.",
            ),
        ),
        asks=(
            now("What is {name}'s usual drink now?", "What drink did {name} change to?", answer="{drink2}"),
            both(
                "What did {name} usually drink before, and what is the usual drink now?",
                "What were {name}'s old and new favourite drinks?",
                answer="first {drink}, now {drink2}",
            ),
        ),
    ),
    Topic(
        name="wake_up",
        domain="health",
        stages=(
            (
                "My alarm rings at {clock} every day.",
                "I get up at {clock}, even without an alarm.",
                "I am an early bird, up at {clock} each morning.",
                "At {clock} I am already out of bed, always.",
                "My body clock wakes me at {clock} sharp.",
                "I set the alarm for {clock}, that is my rhythm.",
                "With my shifts I have to wake up at {clock}.",
                "Waking up at {clock} is normal for me.",
            ),
            (
                "I changed my wake up time, the alarm rings at {clock2} now.",
                "These days I get up at {clock2}, new rhythm.",
                "My new shifts mean getting up at {clock2}.",
                "I reset my alarm clock to {clock2} for good.",
                "My doctor wants me to wake up at {clock2} from now on.",
                "I get out of bed at {clock2} now, and it feels better.",
                "Because of the new schedule I wake up at {clock2}.",
                "The alarm clock says {clock2} when I get up now.",
            ),
        ),
        asks=(
            now("What time does {name} get up now?", "At what time does {name}'s alarm ring now?", answer="{clock2}"),
            both(
                "At what time did {name} wake up before, and at what time now?",
                "How did the time {name} gets up change?",
                answer="from {clock} to {clock2}",
            ),
        ),
    ),
    Topic(
        name="race_time",
        domain="health",
        stages=(
            (
                "My best time over ten kilometres is {racetime} minutes.",
                "I run ten kilometres in {racetime} minutes, my personal best.",
                "The stopwatch said {racetime} minutes for ten kilometres, my record.",
                "Ten kilometres take me {racetime} minutes on a good run.",
                "My personal best for a ten kilometre run is {racetime} minutes.",
                "I needed {racetime} minutes for the ten kilometres, a record for me.",
                "My running record stands at {racetime} minutes for ten kilometres.",
                "I am proud of my ten kilometre time, {racetime} minutes.",
            ),
            (
                "New personal best, ten kilometres in {faster} minutes.",
                "I beat my own running record, {faster} minutes for ten kilometres.",
                "My ten kilometre record is {faster} minutes now.",
                "I broke my record {past}, {faster} minutes for ten kilometres.",
                "Training helped, I now run ten kilometres in {faster} minutes.",
                "A fresh record for me {past}, ten kilometres in {faster} minutes.",
                "My best time changed, it is {faster} minutes for ten kilometres.",
                "The new running shoes gave me {faster} minutes over ten kilometres.",
            ),
        ),
        asks=(
            now(
                "What is {name}'s personal best for ten kilometres now?",
                "What is {name}'s new ten kilometre running record?",
                answer="{faster} minutes",
            ),
            both(
                "What were {name}'s old and new ten kilometre running records?",
                "From what time to what time did {name}'s ten kilometre record change?",
                answer="from {racetime} to {faster} minutes",
            ),
        ),
    ),
    Topic(
        name="doctor",
        domain="health",
        stages=(
            (
                "My dentist is Dr {surname}, very gentle hands.",
                "I only trust Dr {surname} with my teeth.",
                "For dentists I recommend Dr {surname}, no waiting.",
                "Dr {surname} has looked after my teeth for ages.",
                "My teeth are in the hands of Dr {surname}, a patient dentist.",
                "I go to Dr {surname}, the dentist above the pharmacy.",
                "The dentist I see, Dr {surname}, hums while drilling.",
                "Our family dentist is called Dr {surname}.",
            ),
            (
                "I have a new dentist, Dr {surname2}, the old one retired.",
                "I changed dentists, I see Dr {surname2} now.",
                "My teeth are with Dr {surname2} these days, a better dentist.",
                "My dentist retired, so Dr {surname2} took over.",
                "I switched to another dentist, Dr {surname2}, closer to home.",
                "Dr {surname2} is my dentist now, much shorter waits.",
                "{past} I had my first appointment with a new dentist, Dr {surname2}.",
                "From now on I go to Dr {surname2} for my teeth.",
            ),
        ),
        asks=(
            now("Who is {name}'s dentist now?", "What is the name of {name}'s new dentist?", answer="Dr {surname2}"),
            both(
                "Who was {name}'s dentist before, and who is the dentist now?",
                "Which two dentists has {name} been to?",
                answer="first Dr {surname}, now Dr {surname2}",
            ),
        ),
    ),
    Topic(
        name="class_day",
        domain="hobby",
        stages=(
            (
                "My choir rehearsal is every {weekday}.",
                "Choir is on {weekday}, so do not call me then.",
                "I sing in a choir, we meet each {weekday}.",
                "Every {weekday} I am at choir practice until nine.",
                "{weekday} is sacred, that is my choir evening.",
                "The choir rehearses on {weekday} in the old chapel.",
                "My {weekday} belongs to the choir.",
                "I never miss choir on a {weekday}.",
            ),
            (
                "Choir has moved to {weekday2}, the hall is double booked.",
                "We rehearse on {weekday2} now, the choir voted.",
                "My choir evening is {weekday2} from now on.",
                "The conductor changed the choir rehearsal to {weekday2}.",
                "The choir meets on {weekday2} instead, annoying but fine.",
                "From now on choir practice happens every {weekday2}.",
                "New choir day for me, it is {weekday2}.",
                "Our choir switched its weekly rehearsal to {weekday2}.",
            ),
        ),
        asks=(
            now(
                "On which day is {name}'s choir rehearsal now?",
                "Which weekday did {name}'s choir move to?",
                answer="{weekday2}",
            ),
            both(
                "On which day was {name}'s choir before, and on which day is it now?",
                "From which weekday to which weekday did {name}'s choir rehearsal move?",
                answer="from {weekday} to {weekday2}",
            ),
        ),
    ),
)

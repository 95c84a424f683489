"""How somebody does something, told in one turn or over two (`|`); the question asks for the steps."""

from membuilder.generate.topics import Topic, steps

PROCEDURES = (
    Topic(
        name="recipe",
        domain="howto",
        stages=(
            (
                "For {cooked} I fry {ingredient}, add {ingredient2}, then simmer it {minutes} minutes.",
                "My {cooked} is easy, brown {ingredient}, stir in {ingredient2}, simmer {minutes} minutes.",
                "To make {cooked} I start by frying {ingredient} in butter.|"
                "Then {ingredient2} goes into the {cooked}, and it simmers for {minutes} minutes.",
                "The secret of my {cooked} is to roast {ingredient} first.|"
                "After that I add {ingredient2} to the {cooked} and cook it {minutes} minutes.",
                "When I cook {cooked}, first comes {ingredient}, then {ingredient2}, then {minutes} minutes of heat.",
                "Here is how I do {cooked}, soften {ingredient} in oil.|"
                "Next, {ingredient2} joins the {cooked}, lid on, {minutes} minutes.",
                "You make {cooked} by heating {ingredient}, adding {ingredient2}, and waiting {minutes} minutes.",
                "My {cooked} recipe, {ingredient} in the pot, {ingredient2} on top, {minutes} minutes of heat.",
            ),
        ),
        asks=(
            steps(
                "How does {name} make {cooked}?",
                "What are the steps of {name}'s recipe for {cooked}?",
                answer="{ingredient} first, then {ingredient2}, then {minutes} minutes",
            ),
        ),
    ),
    Topic(
        name="baking",
        domain="howto",
        stages=(
            (
                "For {baked} I let the dough rest {rest}, add {topping}, and bake {minutes} minutes.",
                "My {baked} dough rests {rest}, gets {topping}, then bakes for {minutes} minutes.",
                "I knead the {baked} dough and let it rest {rest}.|"
                "Then the {baked} get {topping} and go in the oven for {minutes} minutes.",
                "The trick with {baked} is to leave the dough {rest}.|"
                "Afterwards I put {topping} on the {baked} and bake {minutes} minutes.",
                "To bake {baked}, wait {rest}, add {topping}, then {minutes} minutes of oven.",
                "With {baked} I wait {rest}, finish with {topping}, and bake for {minutes} minutes.",
                "First step for my {baked}, the dough needs to rise {rest}.|"
                "Second step for the {baked}, {topping} on top, then {minutes} minutes of baking.",
                "How I bake {baked}, rise {rest}, cover with {topping}, oven for {minutes} minutes.",
            ),
        ),
        asks=(
            steps(
                "How does {name} bake {baked}?",
                "What are the steps when {name} makes {baked}?",
                answer="rest the dough {rest}, add {topping}, bake {minutes} minutes",
            ),
        ),
    ),
    Topic(
        name="workout",
        domain="howto",
        stages=(
            (
                "My workout goes {exercise}, then {exercise2}, then {exercise3}.",
                "I train with {exercise} first, {exercise2} second, and finish with {exercise3}.",
                "When I exercise I begin with {exercise} to get warm.|"
                "Then my workout moves on to {exercise2}, and {exercise3} come last.",
                "Three rounds of {exercise}, {exercise2} and {exercise3}, that is my training.",
                "My trainer wrote me a plan, {exercise}, {exercise2}, and finally {exercise3}.",
                "In my workout {exercise} come first, always.|"
                "After that I train {exercise2}, and I end the workout with {exercise3}.",
                "To stay fit I do {exercise}, followed by {exercise2} and {exercise3}.",
                "The order of my training never changes, {exercise}, {exercise2}, {exercise3}.",
            ),
        ),
        asks=(
            steps(
                "What are the steps of {name}'s workout?",
                "Which exercises does {name}'s workout consist of, in order?",
                answer="{exercise}, then {exercise2}, then {exercise3}",
            ),
        ),
    ),
    Topic(
        name="morning_routine",
        domain="howto",
        stages=(
            (
                "My morning routine is {morning}, then {morning2}, then {morning3}.",
                "I start each morning with {morning}, followed by {morning2} and {morning3}.",
                "My mornings always begin with {morning}.|"
                "Next in my morning routine comes {morning2}, and after that {morning3}.",
                "First {morning}, then {morning2}, last {morning3}, that is my morning.",
                "My mornings have three parts, {morning}, {morning2} and {morning3}.",
                "Step one of my morning is {morning}.|Step two of my morning is {morning2}, step three is {morning3}.",
                "Without {morning}, {morning2} and {morning3}, my morning is ruined.",
                "Before work I always do the same, {morning}, {morning2}, {morning3}.",
            ),
        ),
        asks=(
            steps(
                "What are the steps of {name}'s morning routine?",
                "What does {name} do every morning, in order?",
                answer="{morning}, then {morning2}, then {morning3}",
            ),
        ),
    ),
    Topic(
        name="evening_routine",
        domain="howto",
        stages=(
            (
                "Before bed I do the same, {evening}, then {evening2}, then {evening3}.",
                "My bedtime routine is {evening}, followed by {evening2} and {evening3}.",
                "To fall asleep I begin my bedtime routine with {evening}.|"
                "Then comes {evening2}, and {evening3} ends my bedtime routine.",
                "What helps me sleep is {evening}, {evening2} and {evening3}, in order.",
                "My evening ritual has three steps, {evening}, {evening2}, {evening3}.",
                "The first part of my bedtime ritual is {evening}.|"
                "After that my bedtime ritual needs {evening2}, and lastly {evening3}.",
                "I wind down at bedtime with {evening}, {evening2}, and last {evening3}.",
                "My recipe for sleep, first {evening}, next {evening2}, finally {evening3}.",
            ),
        ),
        asks=(
            steps(
                "What are the steps of {name}'s bedtime routine?",
                "How does {name} wind down before sleep, step by step?",
                answer="{evening}, then {evening2}, then {evening3}",
            ),
        ),
    ),
    Topic(
        name="plant_care",
        domain="howto",
        stages=(
            (
                "I water my {houseplant} every {interval} and feed it {feed}.",
                "My {houseplant} gets water every {interval}, plus some {feed}.",
                "To keep the {houseplant} alive, water it every {interval} and give it {feed}.",
                "The {houseplant} needs a drink every {interval}, I never water it sooner.|"
                "When I have watered the {houseplant}, I mix {feed} into the soil.",
                "My {houseplant} thrives on {feed} and water every {interval}.",
                "Caring for my {houseplant} is simple, water every {interval}, then {feed}.",
                "First I water the {houseplant}, that is every {interval}.|"
                "Then I feed the {houseplant} with {feed}, that makes it bloom.",
                "I learned to treat the {houseplant} right, water every {interval}, {feed} as food.",
            ),
        ),
        asks=(
            steps(
                "How does {name} take care of the {houseplant}?",
                "What are the steps of {name}'s care for the {houseplant}?",
                answer="water every {interval} and feed {feed}",
            ),
        ),
    ),
    Topic(
        name="coffee",
        domain="howto",
        stages=(
            (
                "For {brew} coffee I grind the beans {grind} and wait {minutes} minutes.",
                "My {brew} coffee needs beans ground {grind}, then {minutes} minutes of patience.",
                "I brew coffee with the {brew}, beans {grind} ground, then wait {minutes} minutes.",
                "To make coffee in my {brew} I grind the beans {grind}.|"
                "Then I pour water into the {brew} and let the coffee draw {minutes} minutes.",
                "The way I make coffee, {grind} ground beans, {brew}, {minutes} minutes.",
                "With the {brew}, the coffee beans are ground {grind} and steep {minutes} minutes.",
                "Good coffee starts with beans ground {grind}, that is my rule.|"
                "Then the coffee rests in the {brew} for {minutes} minutes.",
                "I make coffee by grinding {grind}, filling the {brew}, and waiting {minutes} minutes.",
            ),
        ),
        asks=(
            steps(
                "How does {name} make coffee with the {brew}?",
                "What are the steps of {name}'s {brew} coffee?",
                answer="grind the beans {grind}, {brew}, wait {minutes} minutes",
            ),
        ),
    ),
    Topic(
        name="stain",
        domain="howto",
        stages=(
            (
                "To get {stain} stains out I use {cleaner}, then {cleaner2} after {minutes} minutes.",
                "For {stain} stains I rub in {cleaner}, wait {minutes} minutes, and rinse with {cleaner2}.",
                "With {stain} stains I first put {cleaner} on the cloth.|"
                "After {minutes} minutes I treat the {stain} stain with {cleaner2}.",
                "My trick against {stain} stains is {cleaner}, {minutes} minutes of waiting, then {cleaner2}.",
                "Every {stain} stain disappears with {cleaner}, {minutes} minutes of waiting and {cleaner2}.",
                "Grandma removed {stain} stains with {cleaner}, and so do I.|"
                "Then the {stain} stain soaks {minutes} minutes before {cleaner2} finishes the job.",
                "You remove {stain} stains by using {cleaner}, waiting {minutes} minutes, and adding {cleaner2}.",
                "I clean {stain} stains in two rounds, {cleaner}, then {minutes} minutes later {cleaner2}.",
            ),
        ),
        asks=(
            steps(
                "How does {name} remove {stain} stains?",
                "What are the steps of {name}'s trick against {stain} stains?",
                answer="{cleaner}, wait {minutes} minutes, then {cleaner2}",
            ),
        ),
    ),
    Topic(
        name="machine_fix",
        domain="howto",
        stages=(
            (
                "When the {machine} stops, I unplug it, clean the {part}, and wait {minutes} minutes.",
                "I fix the {machine} by pulling the plug, cleaning the {part}, and waiting {minutes} minutes.",
                "If my {machine} acts up, I pull the plug and clean the {part}.|"
                "Then the {machine} has to rest {minutes} minutes before I switch it on.",
                "My {machine} only works if I clean the {part} and let it rest {minutes} minutes.",
                "To repair the {machine}, clean the {part}, leave it {minutes} minutes, then restart.",
                "The {machine} needs care, first I take out the {part} and wipe it.|"
                "Then I leave the {machine} unplugged for {minutes} minutes.",
                "How to restart my {machine}, wipe the {part}, wait {minutes} minutes, press the button.",
                "A broken {machine} is no problem, I clean the {part} and wait {minutes} minutes.",
            ),
        ),
        asks=(
            steps(
                "How does {name} fix the {machine}?",
                "What are the steps when {name}'s {machine} stops working?",
                answer="clean the {part}, then wait {minutes} minutes",
            ),
        ),
    ),
    Topic(
        name="packing",
        domain="howto",
        stages=(
            (
                "When I pack a suitcase, {packed} go in first, then {packed2}, then {packed3}.",
                "I pack my suitcase in order, {packed}, {packed2}, and {packed3} on top.",
                "My suitcase always starts with {packed} at the bottom.|"
                "Then I pack {packed2}, and the last things in the suitcase are {packed3}.",
                "My packing system is {packed} below, {packed2} in the middle, {packed3} on top.",
                "To pack light I layer {packed}, then {packed2}, and finish with {packed3}.",
                "Packing is an art, {packed} belong at the very bottom.|"
                "Next I pack {packed2}, and {packed3} close the suitcase.",
                "I never change how I pack, first {packed}, next {packed2}, last {packed3}.",
                "There is an order in my suitcase, {packed}, {packed2}, {packed3}.",
            ),
        ),
        asks=(
            steps(
                "In what order does {name} pack a suitcase?",
                "What are the steps of {name}'s way of packing?",
                answer="{packed}, then {packed2}, then {packed3}",
            ),
        ),
    ),
)

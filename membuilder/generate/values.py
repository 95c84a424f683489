"""Slot values. Names (of people, pets, places, firms) are partitioned between the splits; common words are shared."""

import random
from typing import Literal

Split = Literal["train", "heldout"]


def _values(text: str) -> tuple[str, ...]:
    return tuple(" ".join(value.split()) for value in text.split(","))


NAMES = {
    "first": _values("""
        Ada, Boris, Clara, Dario, Edith, Felix, Gwen, Hugo, Ingrid, Jonas, Katya, Leo, Mabel, Nico, Olive,
        Pavel, Quinn, Rosa, Stefan, Tilda, Umar, Vera, Wendell, Xenia, Yusuf, Zelda, Amir, Bianca, Cedric,
        Daphne, Emil, Fiona, Gideon, Helga, Ivo, Jasmin, Kurt, Lorna, Marek, Nadia, Otto, Petra, Ravi,
        Selma, Tobias, Ursula, Viktor, Wanda, Yara, Zeno, Alma, Bruno, Celia, Dimitri, Esme, Fritz, Greta,
        Hassan, Iris, Jules, Kira, Linus, Mona, Nils, Opal, Phoebe, Ramon, Sylvie, Theo, Una, Vito, Willa,
        Yvonne, Zach, Anton, Briony, Casper, Della, Enzo, Freya, Gustav, Hattie, Isaac, Joanna, Kofi, Lena,
        Miguel, Nora, Oscar, Paloma, Rufus, Sonja, Tariq, Ulla, Vince, Wilma, Yosef, Zora, Arlo, Beatrix,
        Cosmo, Dora, Ezra, Flora, Gilbert, Heidi, Igor, Judith, Kasper, Lydia, Magnus, Nell, Orson, Polly,
        Roland, Sienna, Tess, Vivian, Walt, Ines, Jorge, Kemal, Liv, Marta, Noel, Priya, Ruben, Stella,
        Timo, Alice, Bernard, Carmen, Duncan, Elsa"""),
    "surname": _values("""
        Keller, Novak, Okafor, Lindqvist, Moreau, Tanaka, Barros, Whitlock, Petrov, Ferrante, Delaney,
        Hoffman, Castellan, Ibsen, Marlowe, Quigley, Rahman, Sandoval, Thorne, Ustinov, Vance, Wexler,
        Yilmaz, Zamora, Ashby, Brandt, Corrigan, Dufour, Eklund, Fairfax"""),
    "city": _values("""
        Leeds, Porto, Graz, Lyon, Utrecht, Turin, Malmo, Ghent, Boise, Tampa, Omaha, Halifax, Perth, Bergen,
        Seville, Cologne, Basel, Krakow, Bilbao, Antwerp, Denver, Austin, Tulsa, Quebec, Brno, Bristol,
        Aarhus, Nantes, Verona, Salzburg"""),
    "place": _values("""
        Iceland, Morocco, Corsica, Vietnam, Madeira, Norway, Peru, Crete, Sardinia, Scotland, Kenya,
        Patagonia, Sicily, Nepal, Estonia, Jordan, Cuba, Lapland, Malta, Japan, Slovenia, Mexico, Tuscany,
        Brittany, Chile, Georgia, Zanzibar, Cornwall, Andalusia, Finland, Tasmania, Albania, Cyprus, Bali,
        Hawaii, Lisbon"""),
    "employer": _values("""
        Brightwell Labs, Corvex, Oakline Media, Fernwood Clinic, Tidewater Bank, Quillon, Redmoor Foods,
        Halden Motors, Bluepeak, Marrow Books, Northgate School, Solvay Glass, Pinecrest Hotel, Lumen
        Optics, Harrow Theatre, Castlegate Museum, Vantor, Greenline Rail, Silverbrook, Dunmore Dairy,
        Ellery Prints, Falcon Freight, Gable Homes, Juniper Games"""),
    "pet": _values("""
        Biscuit, Pepper, Waffles, Mocha, Ziggy, Pickle, Luna, Rusty, Nutmeg, Bandit, Clover, Domino, Fudge,
        Gizmo, Hazel, Jasper, Kipper, Maple, Noodle, Oreo, Puddle, Rocket, Smokey, Tofu, Velvet, Whiskers,
        Yoda, Zorro, Bramble, Cinder, Dusty, Echo, Figaro, Gingersnap, Honey, Inky, Jellybean, Marbles,
        Nugget, Pretzel, Quackers, Radish"""),
    "band": _values("""
        the Crimson Foxes, Paper Lanterns, the Night Ferries, Golden Static, Hollow Pines, the Broken
        Compass, Silver Orchard, Neon Harbour, the Drifting Anchors, Moonlit Parade, Quiet Thunder, the Lost
        Umbrellas, Amber Static, the Tin Sailors, Winter Motel, Copper Choir, the Sunday Ghosts, Plastic
        Meadow, Attic Parlour, the Slow Comets, Violet Engine"""),
    "film": _values("""
        The Glass Orchard, Midnight Ferry, A Winter Letter, The Clockmaker, Salt and Ember, The Last
        Lighthouse, Borrowed Rain, Seven Bridges, The Paper Tiger, Harvest Moon, Silent Canyon, The Tailor"""),
    "restaurant": _values("""
        Casa Lupo, The Copper Pot, Blue Fig, Mama Rosina, Saffron House, The Hungry Heron, Lotus Garden, Old
        Mill Kitchen, Little Havana, The Salty Plum, Nonna Pia, Cedar Table"""),
    "team": _values("""
        the Harbor Hawks, the Valley Bears, the River Kings, the Iron Foxes, the City Comets, the Lake
        Wolves, the Stone Eagles, the Royal Otters, the Desert Bulls, the Hill Rangers, the Storm Larks, the
        Coast Pirates"""),
    "street": _values("""
        Linden Lane, Harbour Street, Chapel Road, Willow Crescent, Station Avenue, Mill Hill, Orchard Row,
        Kings Parade, Canal Walk, Foxglove Close, Bishop Street, Garden Terrace"""),
}

COMMON = {
    "job": _values("""
        a nurse, a baker, a plumber, a translator, an accountant, a florist, a bus driver, a carpenter, a
        librarian, a paramedic, a graphic designer, a geography teacher, a dental assistant, an electrician,
        a tax advisor, a chef, a midwife, a lab technician, a web developer, a gardener, a piano tuner, an
        optician"""),
    "animal": _values("""
        cat, puppy, rabbit, parrot, tortoise, hamster, gecko, kitten, terrier, greyhound, canary, ferret"""),
    "relative": _values("brother, sister, cousin, uncle, aunt, nephew, niece, stepbrother, godmother, grandfather"),
    "hobby": _values("""
        pottery, climbing, fencing, archery, woodcarving, salsa dancing, birdwatching, calligraphy,
        kayaking, chess, knitting, beekeeping, rowing, judo, stargazing, origami, skateboarding, watercolour
        painting"""),
    "instrument": _values("""
        cello, banjo, clarinet, mandolin, ukulele, drums, harp, trumpet, violin, saxophone, flute"""),
    "language": _values("Italian, Korean, Welsh, Arabic, Polish, Swahili, Danish, Greek, Hindi, Turkish, Hungarian"),
    "dish": _values("""
        mushroom risotto, pork dumplings, onion tart, lamb stew, spinach lasagne, fish tacos, potato gratin,
        beef noodles, stuffed peppers, chickpea curry"""),
    "food": _values("""
        olives, coriander, liver, blue cheese, beetroot, raisins, anchovies, aubergine, celery, liquorice,
        sprouts"""),
    "allergen": _values("""
        peanuts, shellfish, cashews, kiwi fruit, sesame, strawberries, eggs, soy, walnuts, penicillin"""),
    "drink": _values("""
        black coffee, green tea, ginger beer, oat milk cocoa, peppermint tea, tomato juice, iced matcha,
        buttermilk, cold brew, camomile tea, lemonade, sparkling water"""),
    "diet": _values("vegetarian, vegan, gluten free, dairy free, low carb, sugar free, pescatarian, low salt"),
    "vehicle": _values("""
        an old hatchback, a red scooter, an electric bike, a camper van, a grey estate car, a folding bike,
        a motorbike, a pickup truck, a hybrid, a cargo bike"""),
    "colour": _values("""
        sage green, navy, mustard yellow, lilac, terracotta, teal, crimson, ivory, turquoise, charcoal"""),
    "spot": _values("""
        under the blue flowerpot, behind the boiler, in the biscuit tin, inside the piano stool, on top of
        the fridge, in the bottom drawer, beneath the stairs, in the garage cupboard, above the wardrobe,
        behind the dictionary, in the laundry basket, under the sink"""),
    "keepsake": _values("""
        passport, birth certificate, jewellery box, tax folder, sewing kit, toolbox, first aid kit, photo
        albums"""),
    "wood": _values("oak, walnut wood, birch, bamboo, marble, cherry wood, pine, concrete, glass, slate"),
    "heirloom": _values("""
        pocket watch, silver ring, typewriter, wool coat, fiddle, mantel clock, china set, pearl necklace,
        compass"""),
    "fear": _values("spiders, heights, thunder, deep water, needles, lifts, moths, clowns, tunnels, geese"),
    "subject": _values("""
        marine biology, philosophy, civil engineering, art history, chemistry, economics, linguistics, law,
        architecture, physics"""),
    "skill": _values("""
        juggle four balls, whistle with two fingers, solve a cube in a minute, read sheet music, sew a
        dress, do a handstand, fold fitted sheets, touch type blind, ride a unicycle, pick simple locks"""),
    "collectible": _values("""
        vintage postcards, fossils, fridge magnets, old maps, teapots, vinyl records, stamps, snow globes,
        fountain pens, enamel pins"""),
    "crop": _values("""
        tomatoes, rhubarb, courgettes, runner beans, chillies, radishes, kale, blackcurrants, garlic, peas"""),
    "ailment": _values("""
        a slipped disc, migraines, asthma, a torn ligament, tinnitus, high blood pressure, eczema, anaemia,
        a bad knee, a heart murmur"""),
    "gift": _values("""
        a telescope, a cashmere scarf, a bread machine, a globe, a record player, a hammock, a cookbook, a
        kite, a fountain pen, a chess set"""),
    "tattoo": _values("swallow, sailing ship, lighthouse, fern, dragonfly, crescent moon, fox, wave, sunflower, key"),
    "body": _values("left ankle, right shoulder, forearm, neck, wrist, calf, upper back"),
    "bone": _values("left wrist, right ankle, collarbone, big toe, thumb, elbow, little finger, jaw, nose, kneecap"),
    "business": _values("""
        a bookshop, a cheese stall, a bike repair shop, a guesthouse, a plant nursery, a bakery, a cat cafe,
        a climbing hall, a brewery, a dance studio"""),
    "weekday": _values("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "clock": _values("""
        five, quarter past five, half past five, six, quarter past six, half past six, seven, quarter past
        seven, half past seven, eight"""),
    "age": _values("three, four, five, six, seven, eight, nine, ten"),
    "count": _values("eleven, fourteen, sixteen, nineteen, twenty two, twenty six"),
    "larger": _values("thirty one, thirty four, thirty eight, forty two, forty four, forty nine"),
    "racetime": _values("fifty six, fifty seven, fifty nine, sixty one, sixty three, sixty five"),
    "faster": _values("forty eight, forty nine, fifty one, fifty two, fifty three, fifty four"),
    "cause": _values("""
        the animal shelter, the food bank, the night shelter, the hospice, the youth club, the beach
        cleanup, the reading scheme, the mountain rescue, the repair cafe, the soup kitchen"""),
    "game": _values("dominoes, backgammon, poker, dungeons and dragons, mahjong, scrabble, cribbage, bridge"),
    "year": _values("2009, 2011, 2012, 2013, 2014, 2015, 2016, 2017, 2018, 2019"),
    "appliance": _values("""
        dishwasher, sewing machine, drone, laptop, sofa, tent, coffee machine, surfboard, greenhouse"""),
    "exam": _values("first aid, sailing, accounting, forklift, scuba diving, sign language, bookkeeping, lifeguard"),
    "minutes": _values("""
        five, eight, ten, twelve, fifteen, eighteen, twenty, twenty five, thirty, thirty five, forty, forty
        five, fifty, fifty five"""),
    "cooked": _values("""
        lentil soup, fish stew, pumpkin soup, bean chili, chicken curry, tomato sauce, goulash, vegetable
        broth"""),
    "ingredient": _values("""
        onions, fresh ginger, carrots, coconut milk, red peppers, bacon, leeks, cumin seeds, crushed
        tomatoes, white beans, smoked paprika, fennel"""),
    "baked": _values("sourdough, cinnamon rolls, focaccia, rye bread, banana bread, scones, pretzels, apple cake"),
    "topping": _values("sea salt, poppy seeds, brown sugar, rosemary, egg wash, melted butter, almonds, oat flakes"),
    "rest": _values("""
        one hour, two hours, overnight, five hours, ninety minutes, three hours, six hours, twelve hours"""),
    "exercise": _values("""
        squats, push ups, lunges, planks, burpees, rope skipping, pull ups, sit ups, dips, mountain
        climbers, kettlebell swings, star jumps"""),
    "morning": _values("""
        a cold shower, some stretching, warm water, porridge, some journaling, a short walk, making the
        bed, feeding the birds, a short meditation, a crossword, piano scales, a smoothie"""),
    "evening": _values("""
        dimming the lights, a foot bath, some light reading, breathing exercises, face cream, a hot shower,
        light yoga, a task list, lavender oil, herbal tea, turning phones off, a quiet podcast"""),
    "houseplant": _values("orchid, bonsai, fern, cactus, monstera, peace lily, basil, lemon tree"),
    "interval": _values("four days, five days, six days, ten days, two weeks, three weeks, eight days, nine days"),
    "feed": _values("""
        coffee grounds, crushed eggshells, seaweed feed, banana water, compost tea, rice water, fish meal,
        wood ash"""),
    "stain": _values("red wine, grass, candle wax, ink, blood, curry, coffee, grease"),
    "cleaner": _values("""
        cold water, baking soda, white vinegar, lemon juice, salt, dish soap, talcum powder, hot water,
        cornflour, soda water"""),
    "machine": _values("boiler, printer, vacuum cleaner, coffee grinder, dryer, lawnmower, radio, router"),
    "part": _values("filter, fan, hose, blade, fuse, nozzle, valve, cable"),
    "grind": _values("coarse, medium, fine, very fine, freshly, by hand, extra coarse, medium fine"),
    "brew": _values("french press, moka pot, pour over, aeropress, siphon, percolator, drip cone, cold dripper"),
    "packed": _values("""
        shoes, rolled shirts, chargers, toiletries, sweaters, books, rain jackets, socks, towels, snacks,
        medicine, hats"""),
}


def pool(name: str, split: Split) -> tuple[str, ...]:
    """Values a split may use: every third name is held out, common words are open to both."""
    if name in COMMON:
        return COMMON[name]
    return tuple(value for index, value in enumerate(NAMES[name]) if (index % 3 == 2) == (split == "heldout"))


class Supply:
    """Hands out values of one dialogue, none twice, so that no two facts of a dialogue share a name."""

    def __init__(self, rng: random.Random, split: Split):
        self._rng, self._split = rng, split
        self._left: dict[str, list[str]] = {}

    def draw(self, slot: str) -> str:
        """A value for a slot; a trailing digit (`city2`) only tells two slots of one pool apart."""
        name = slot.rstrip("0123456789")
        if name not in self._left:
            values = pool(name, self._split)
            self._left[name] = self._rng.sample(values, len(values))
        return self._left[name].pop()

"""The words of the evaluation prompts: none of them is a word of the training prompts."""

from sysdpo.tasks.verifiable.pool import Pool, category, groups, stems

EVALUATION = Pool(
    subjects=stems("""
            oceans: ocean sea, snow: snow, cheese: cheese, ships: ship, forests: forest, nurses: nurse
            nursing, mirrors: mirror, ants: ant, deserts: desert, hats: hat, paintings: paint, summer: summer,
            cars: car, firefighters: firefighter, glass: glass, horses: horse, balloons: balloon, tea: tea,
            tunnels: tunnel, museums: museum, salt: salt, football: football, castles: castle, cats: cat
            kitten, memories: memor remember, pasta: pasta, poems: poem poet, frogs: frog, storms: storm,
            butter: butter, windows: window, swimming: swim, ice: ice icy, giraffes: giraffe, circuses:
            circus, pilots: pilot, taxis: taxi, tulips: tulip, candles: candle, whales: whale
        """),
    taboo={
        "carrots": ("crunchy", "root"),
        "snow": ("frosty", "freezing"),
        "tea": ("cup", "warm"),
        "giraffes": ("tall", "spots"),
        "the ocean": ("waves", "deep"),
        "a museum": ("art", "history"),
        "cats": ("soft", "furry"),
        "candles": ("wax", "glow"),
        "summer": ("sunny", "beach"),
        "a castle": ("king", "stone"),
        "cars": ("wheels", "drive"),
        "salt": ("food", "taste"),
        "football": ("ball", "goal"),
        "a forest": ("trees", "leaves"),
    },
    scenes=groups("""
            cat sofa yarn lamp, ship sailor anchor storm, nurse pillow clinic blanket, horse saddle stable
            carrot, pilot runway jacket helicopter, candle mirror curtain castle, frog pond lily stone,
            painter brush museum canvas, whale ocean island wave, taxi hotel suitcase driver, balloon circus
            clown tent, football stadium goal crowd, snow sledge scarf forest
        """),
    categories=(
        category(
            "vegetables",
            "vegetable",
            """
            carrot, broccoli, spinach, potato, potatoes, tomato, tomatoes, onion, garlic, cucumber, lettuce,
            cabbage, cauliflower, pea, bean, corn, pepper, bell pepper, celery, kale, zucchini, pumpkin,
            squash, beet, radish, radishes, turnip, eggplant, leek, asparagus, parsnip, mushroom, okra
        """,
        ),
        category(
            "insects",
            "insect",
            """
            ant, butterfly, butterflies, beetle, fly, flies, mosquito, mosquitoes, moth, wasp, grasshopper,
            cricket, dragonfly, dragonflies, ladybug, ladybird, termite, flea, cockroach, cockroaches, aphid,
            hornet, locust, cicada, caterpillar, gnat, mantis, praying mantis, bee, honeybee, bumblebee
        """,
        ),
        category(
            "countries",
            "country",
            """
            france, germany, italy, spain, portugal, japan, china, india, brazil, canada, mexico, australia,
            egypt, kenya, nigeria, russia, norway, sweden, finland, denmark, poland, greece, ireland, england,
            usa, united states, peru, chile, argentina, south africa, south korea, korea, thailand, vietnam,
            indonesia, switzerland, austria, belgium, netherlands, united kingdom, uk, scotland, iceland,
            morocco, colombia, cuba, america, new zealand, united states of america, pakistan, ghana,
            ethiopia, ukraine, hungary, iran, iraq, israel, jordan, nepal
        """,
        ),
        category(
            "musical instruments",
            "musical instrument",
            """
            piano, guitar, violin, drum, flute, trumpet, cello, clarinet, saxophone, harp, trombone, tuba,
            oboe, banjo, ukulele, accordion, harmonica, bass, viola, keyboard, organ, mandolin, tambourine,
            xylophone, percussion, bassoon, double bass, bass guitar, french horn, sitar, recorder
        """,
        ),
        category(
            "days of the week",
            "day of the week",
            "tuesday, wednesday, thursday, friday, saturday, sunday, monday",
        ),
        category(
            "pieces of furniture",
            "piece of furniture",
            """
            chair, table, sofa, couch, bed, desk, bookshelf, bookcase, wardrobe, dresser, armchair, cabinet,
            bench, stool, lamp, nightstand, cupboard, shelf, shelves, ottoman, rug
        """,
        ),
        category(
            "sports",
            "sport",
            """
            football, soccer, basketball, tennis, baseball, volleyball, hockey, rugby, golf, swimming, boxing,
            skiing, cycling, running, cricket, badminton, table tennis, wrestling, surfing, rowing,
            gymnastics, skating, softball, track and field, athletics, judo, karate, fencing, sailing,
            climbing, lacrosse, ice hockey, skateboarding, snowboarding, archery
        """,
        ),
    ),
    endings=(
        "after midnight",
        "on the beach",
        "until sunset",
        "around the world",
        "by candlelight",
        "at the museum",
        "through the forest",
        "once again",
        "without any help",
        "beside the ocean",
    ),
    beginnings=(
        "Frankly",
        "Last summer",
        "To our surprise",
        "Nowadays",
        "Around midnight",
        "One neighbour thinks",
        "Fortunately",
        "Across the ocean",
        "After lunch",
        "Believe it",
    ),
    records={
        "a film": ("title", "director", "year", "price"),
        "a car": ("brand", "price", "year", "engine"),
        "a ship": ("captain", "length", "year", "harbour"),
        "a hotel": ("town", "price", "rooms", "stars"),
        "a cat": ("nickname", "weight", "toy", "birthday"),
        "a painting": ("title", "artist", "year", "price"),
        "a nurse": ("nickname", "town", "birthday", "clinic"),
        "a castle": ("town", "year", "rooms", "king"),
        "a novel": ("title", "author", "year", "price"),
    },
    people=(
        "Clara",
        "David",
        "Sofia",
        "Leo",
        "Grace",
        "Henry",
        "Mia",
        "Simon",
        "Olga",
        "Felix",
        "Ruth",
        "Victor",
    ),
    things=(
        "balloons",
        "candles",
        "hats",
        "coins",
        "marbles",
        "carrots",
        "tulips",
        "cookies",
        "buttons",
        "toys",
    ),
    jobs=("nurse", "pilot", "painter", "sailor", "lawyer", "singer", "waiter", "soldier", "chef", "clown"),
    places=("London", "Tokyo", "Cairo", "Lima", "Boston", "Moscow", "Sydney", "Toronto", "Delhi", "Nairobi"),
    pets=("cat", "horse", "frog", "hamster", "rabbit", "turtle", "goldfish", "lizard"),
    sums=(6, 9, 12, 15),
    comparisons={
        "heavier": groups("whale frog, piano balloon, ship candle, horse ant, car hat, castle pillow, sofa coin"),
        "taller": groups("giraffe cat, castle chair, horse rabbit, stadium tent, lighthouse stool"),
        "louder": groups("drum pillow, trumpet blanket, storm candle, helicopter moth"),
        "softer": groups("pillow stone, blanket coin, scarf table"),
    },
    opposites={
        "happy": ("sad", "unhappy"),
        "soft": ("hard", "firm", "rough"),
        "heavy": ("light", "lightweight"),
        "open": ("closed", "close", "shut"),
        "tall": ("short",),
        "rich": ("poor",),
        "loud": ("quiet", "silent", "soft"),
        "full": ("empty",),
        "buy": ("sell",),
        "north": ("south",),
        "day": ("night",),
        "clean": ("dirty",),
        "strong": ("weak",),
        "inside": ("outside",),
        "first": ("last",),
        "easy": ("difficult", "hard"),
        "cheap": ("expensive", "costly"),
        "laugh": ("cry", "weep"),
        "asleep": ("awake",),
        "smooth": ("rough",),
        "friend": ("enemy", "foe"),
        "remember": ("forget",),
        "beautiful": ("ugly",),
        "brave": ("cowardly", "afraid", "fearful", "timid"),
    },
)

"""The words of the training prompts."""

from sysdpo.tasks.verifiable.pool import Pool, category, groups, stems

TRAIN = Pool(
    subjects=stems("""
            rivers: river, rain: rain, bread: bread loaf, trains: train, gardens: garden, teachers: teach,
            clocks: clock, sheep: sheep lamb, mountains: mountain, shoes: shoe, radios: radio,
            winter: winter, bicycles: bicycle bike, doctors: doctor, paper: paper, cows: cow, kites: kite,
            coffee: coffee, bridges: bridge, libraries: librar, soap: soap, chess: chess, farms: farm, dogs:
            dog pupp, dreams: dream, rice: rice, kitchens: kitchen cook, mice: mice mouse, fog: fog foggy,
            honey: honey, doors: door, dancing: danc, fire: fire, elephants: elephant, school: school, bakers:
            baker bake baking, buses: bus, roses: rose, umbrellas: umbrella, parrots: parrot
        """),
    taboo={
        "lemons": ("yellow", "sour"),
        "the night sky": ("dark", "black"),
        "honey": ("sweet", "golden"),
        "elephants": ("large", "trunk"),
        "coffee": ("hot", "drink"),
        "rivers": ("water", "flow"),
        "a library": ("book", "read"),
        "rain": ("wet", "cloud"),
        "fire": ("burn", "heat"),
        "a bakery": ("bread", "cake"),
        "a school": ("learn", "student"),
        "roses": ("red", "flower"),
        "dogs": ("loyal", "bark"),
        "winter": ("cold", "season"),
    },
    scenes=groups("""
            fox hen farm fence, boat net river rope, baker flour oven loaf, dog stick park puddle, teacher
            chalk lesson corridor, doctor coat bag ladder, snail rose garden hedge, train bridge whistle
            ticket, cow barn bucket gate, kite hill string cloud, mouse clock kitchen crumb, stamp envelope
            drawer key, umbrella rain street bus
        """),
    categories=(
        category(
            "fruits",
            "fruit",
            """
            apple, banana, orange, grape, pear, plum, peach, mango, kiwi, cherry, cherries, strawberry,
            strawberries, blueberry, blueberries, raspberry, raspberries, pineapple, watermelon, melon, lemon,
            lime, apricot, fig, date, papaya, pomegranate, grapefruit, blackberry, blackberries, guava,
            coconut, cranberry, cranberries, tangerine, nectarine, avocado, lychee
        """,
        ),
        category(
            "colours",
            "colour",
            """
            red, blue, green, yellow, purple, pink, brown, black, white, grey, gray, violet, indigo,
            turquoise, gold, silver, beige, teal, magenta, cyan, maroon, navy, scarlet, crimson, orange
        """,
        ),
        category(
            "birds",
            "bird",
            """
            eagle, owl, robin, sparrow, hawk, crow, raven, pigeon, dove, parrot, penguin, swan, duck, goose,
            chicken, hen, turkey, peacock, flamingo, pelican, seagull, gull, stork, heron, woodpecker, falcon,
            finch, canary, ostrich, hummingbird, cardinal, blue jay, bluebird, magpie, kingfisher, swallow,
            vulture, blackbird, toucan, goldfinch, condor, nightingale, lark, thrush, wren, bluejay, jay,
            albatross, ibis, quail, pheasant, macaw, warbler
        """,
        ),
        category(
            "tools",
            "tool",
            """
            hammer, saw, screwdriver, wrench, drill, pliers, shovel, rake, axe, chisel, file, knife, scissors,
            ruler, tape measure, level, spade, hoe, crowbar, spanner, clamp, screw, screws, pencil, ladder,
            sander, plane, mallet
        """,
        ),
        category(
            "months",
            "month",
            """
            january, february, march, april, may, june, july, august, september, october, november, december
        """,
        ),
        category(
            "parts of the body",
            "part of the body",
            """
            head, arm, leg, hand, foot, feet, eye, ear, nose, mouth, neck, shoulder, knee, elbow, finger, toe,
            back, chest, heart, lung, brain, liver, stomach, skin, hair, hip, ankle, wrist, face, kidney,
            bone, muscle, tongue, thumb, chin, torso, abdomen, tooth, teeth, skull, spine
        """,
        ),
        category(
            "planets",
            "planet",
            "mercury, venus, earth, mars, jupiter, saturn, uranus, neptune, pluto",
        ),
    ),
    endings=(
        "all morning long",
        "every morning",
        "at school",
        "with the family",
        "in the rain",
        "for a long time",
        "near the river",
        "before dinner",
        "and nobody knows why",
        "in the garden",
    ),
    beginnings=(
        "Honestly",
        "Long ago",
        "In winter",
        "Uncle Bob says",
        "Every morning",
        "Perhaps",
        "Nobody knows why",
        "Without a doubt",
        "In January",
        "Surprisingly",
    ),
    records={
        "a dog": ("name", "age", "breed", "owner"),
        "a teacher": ("name", "age", "school", "subject"),
        "a bicycle": ("colour", "owner", "speed", "age"),
        "a doctor": ("name", "age", "hospital", "street"),
        "a bakery": ("name", "street", "owner", "bread"),
        "a farm": ("name", "owner", "crop", "street"),
        "a pupil": ("name", "age", "school", "hobby"),
        "a bridge": ("name", "river", "age", "colour"),
        "a parrot": ("name", "colour", "age", "owner"),
    },
    people=("Anna", "Tom", "Maria", "Ben", "Lucy", "Peter", "Nina", "Jack", "Rosa", "Paul", "Emma", "Oscar"),
    things=(
        "apples",
        "pencils",
        "kites",
        "combs",
        "shoes",
        "lemons",
        "roses",
        "loaves",
        "tickets",
        "umbrellas",
    ),
    jobs=(
        "teacher",
        "doctor",
        "baker",
        "farmer",
        "plumber",
        "judge",
        "dancer",
        "tailor",
        "dentist",
        "barber",
    ),
    places=("Paris", "Rome", "Berlin", "Oslo", "Madrid", "Vienna", "Athens", "Dublin", "Lisbon", "Prague"),
    pets=("dog", "parrot", "mouse", "cow", "duck", "goose", "pigeon", "sheep"),
    sums=(4, 5, 7, 8, 10, 11, 13, 14),
    comparisons={
        "bigger": groups(
            "elephant mouse, cow snail, mountain hill, bus bicycle, bridge shoe, river puddle, barn bucket"
        ),
        "faster": groups("train bicycle, bus cow, falcon duck, dog goose, fox hen"),
        "longer": groups("river loaf, train bicycle, bridge ladder, street pencil, rope comb"),
        "hotter": groups("fire cloud, oven kitchen, coffee puddle"),
    },
    opposites={
        "hot": ("cold", "cool"),
        "dark": ("light", "bright"),
        "wet": ("dry",),
        "old": ("young", "new", "modern", "youth", "youthful"),
        "up": ("down",),
        "big": ("small", "little", "tiny"),
        "early": ("late",),
        "sour": ("sweet",),
        "left": ("right",),
        "push": ("pull",),
        "love": ("hate",),
        "win": ("lose",),
        "begin": ("end", "finish", "stop"),
        "above": ("below", "under", "beneath"),
        "fast": ("slow",),
        "wide": ("narrow", "thin"),
        "high": ("low",),
        "thick": ("thin",),
        "true": ("false", "untrue"),
        "sharp": ("blunt", "dull"),
        "near": ("far",),
        "alive": ("dead",),
        "borrow": ("lend",),
        "arrive": ("leave", "depart"),
    },
)

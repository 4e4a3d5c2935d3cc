"""How each family's instruction is worded: several phrasings, the same for both splits."""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "word_limit": (
        "Describe {subject} in at most {n} words.",
        "In no more than {n} words, tell me about {subject}.",
        "Write a sentence about {subject}. Use {n} words or fewer.",
        "Say something about {subject} in {n} words or fewer.",
    ),
    "sentence_count": (
        "Write exactly {n} short sentence{s} about {subject}.",
        "Tell me about {subject} in exactly {n} short sentence{s}.",
        "Give me {n} short sentence{s} about {subject}, no more.",
        "Describe {subject} in {n} short sentence{s}.",
    ),
    "include_words": (
        'Write one sentence that contains the words "{a}" and "{b}".',
        "Use the words {a} and {b} together in one short sentence.",
        "Make a single sentence with these words: {a}, {b}.",
        "Give me one sentence in which {a} and {b} both occur.",
    ),
    "avoid_words": (
        'Describe {subject} in one sentence without the words "{a}" and "{b}".',
        "Write one sentence about {subject}. Do not use the words {a} or {b}.",
        "Tell me about {subject} in a single sentence. Forbidden words: {a}, {b}.",
        "In one sentence, what is special about {subject}? Avoid the words {a} and {b}.",
    ),
    "list_lines": (
        "List exactly {n} {plural}, one per line.",
        "Name {n} {plural}. Put each one on a new line.",
        "Give me a list of {n} {plural}, one item per line.",
        "Write a numbered list of {n} {plural}.",
    ),
    "comma_list": (
        "Name {n} {plural}, separated by commas.",
        "What are {n} {plural}? Separate them with commas.",
        "List {n} {plural} with commas between them.",
        "Give me exactly {n} {plural} as a comma-separated list.",
    ),
    "letter_case": (
        "Name {n} {what} in {case}.",
        "Give me {n} {what} in {case} letters.",
        "Write down {n} {what}, all in {case}.",
        "In {case}, name {n} {what}.",
    ),
    "ending": (
        'Write one sentence about {subject} that ends with "{text}".',
        'Write a sentence about {subject}. Its last words must be "{text}".',
        'Make a single sentence about {subject} and finish it with the words "{text}".',
        'Tell me something about {subject} in one sentence ending in "{text}".',
    ),
    "beginning": (
        'Write one sentence about {subject} that begins with "{text}".',
        'Write a sentence about {subject}. Its first words must be "{text}".',
        'Start with "{text}" and write a single sentence about {subject}.',
        'Tell me something about {subject} in one sentence starting with "{text}".',
    ),
    "question": (
        "Write one question about {subject}.",
        "Ask me a single question about {subject}.",
        "Give me one short question that a child could ask about {subject}.",
        "What might somebody ask about {subject}? Write only one question.",
    ),
    "quoted_title": (
        "Give me a title for a story about {subject}, in double quotes.",
        "Make up a title about {subject}. Write only the title, in double quotes.",
        "What could a song about {subject} be called? Answer with a title in double quotes.",
        "Write a short title about {subject} between double quotes.",
    ),
    "json_object": (
        'Write a JSON object about {record} with the keys "{a}" and "{b}".',
        'Describe {record} in JSON with only the keys "{a}" and "{b}".',
        'Give me a short JSON object for {record} with two keys, "{a}" and "{b}".',
        'Invent {record}. Answer with JSON that has the keys "{a}" and "{b}".',
    ),
    "arithmetic": (
        "{person} has {a} {thing} and gets {b} more. How many {thing} does {person} have now?",
        "What is {a} + {b}?",
        "There are {a} {thing} here and {b} {thing} there. How many {thing} is that in all?",
        "Add {a} and {b}. What is the total?",
    ),
    "extraction": (
        "{person} is a {job}, lives in {city} and has a {pet}. {question}",
        "{question} Here is what we know: {person} is a {job} in {city} and has a {pet}.",
        "In {city} lives a {job} named {person}, who has a {pet}. {question}",
        "Read: {person} has a {pet}, lives in {city} and works as a {job}. {question}",
    ),
    "choice": (
        "Which is {adjective}, {a} or {b}?",
        "What is usually {adjective}: {a} or {b}?",
        "Choose the {adjective} one: {a} or {b}.",
        "{a} or {b}: which one is {adjective}?",
    ),
    "yes_no": (
        'Is "{member}" the name of {singular}? Answer yes or no.',
        "Would you call {member} {singular}? Say yes or no.",
        'Yes or no: is "{member}" {singular}?',
        "Answer with yes or no. Is {member} {singular}?",
    ),
    "opposite": (
        'What is the opposite of "{word}"?',
        "Give me a word that means the opposite of {word}.",
        'Write only the opposite of the word "{word}".',
        "Which word is the opposite of {word}?",
    ),
}

INSTRUCTION_WORDS = frozenset(
    """
    a about add all an and answer are as ask at avoid be begins between both by call called child
    choose comma commas contains could describe do does double down each ending ends exactly fewer finish
    first five for forbidden four gets give has have here how in invent is it item its job json keys know last
    letters line list live lives lowercase make many me means might more most must name named new no not now numbered
    object occur of on one only opposite or per pet put question quotes read s say sentence sentences separate
    separated short single six somebody something song special start starting story tell than that the
    them there these three title together total two up uppercase use usually we what where which who with without word
    words works would write yes you
    """.split()  # noqa: SIM905
)
"""The only words that prompts of both splits contain: function words and the vocabulary of instructing."""

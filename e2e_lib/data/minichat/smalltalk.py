"""What the people of MiniChat say around a photo in any situation; fields and rules as in ``phrases``."""

# How chats name places and times; captions use the first form of a place.
PLACE_PHRASES = {
    "beach": ("at the beach", "by the sea", "on the beach"),
    "forest": ("in the forest", "in the woods", "in the forest"),
    "city": ("in the city", "downtown", "in the city"),
    "snow": ("in the snow", "up in the snow", "in the snow"),
    "desert": ("in the desert", "out in the desert", "in the desert"),
    "garden": ("in the garden", "out in the garden", "in the garden"),
}
TIME_PHRASES = {"day": ("during the day", "in the middle of the day", "in the sunshine"),
                "evening": ("in the evening", "at sunset", "when the sun went down"),
                "night": ("at night", "late at night", "under the stars")}

# Captions, and words that agree with the number of things.
CAPTIONS = ("{noun} {place}{time}", "a photo of {noun} {place}{time}", "{place}{time}, {noun}",
            "{noun}, {place}{time}", "a picture of {noun} {place}{time}", "{noun} standing {place}{time}",
            "{place}, {noun}{time}", "there {is_} {noun} {place}{time}", "here {is_} {noun} {place}{time}",
            "{noun} all alone {place}{time}")
CAPTION_TIMES = {"day": ("during the day", "in the sunshine"), "evening": ("in the evening", "at sunset"),
                 "night": ("at night",)}

HIS, HER = ("brother", "dad", "uncle", "grandpa", "cousin"), ("sister", "mum", "aunt", "grandma", "friend")
NAMES = ("Anna", "Ben", "Mia", "Tom", "Lena", "Max", "Sara", "Leo")
SINGULAR = {"they": "it", "them": "it", "that": "that", "is": "is", "was": "was", "do": "does", "one": "one",
            "a_one": "one", "one_like": "one like that"}
PLURAL = {"they": "they", "them": "them", "that": "those", "is": "are", "was": "were", "do": "do",
          "one": "ones", "a_one": "some", "one_like": "some like those"}

INTEREST = ("Oh, nice!", "That sounds great!", "Really?", "Lovely!", "How nice!", "Wow!", "Oh, good.",
            "Interesting!", "I see.", "Great!", "Ha, okay!", "No way!")

# A photo follows at once after each of these, and only after these.
REQUESTS = ("Can you show me?", "Can you send me a picture?", "Show me!", "I want to see {them}!",
            "Do you have a photo of {them}?", "Send me a photo, please!", "May I see {them}?", "Let me see!",
            "Did you take a photo of {them}?", "I would love to see {that}.", "Pictures, please!",
            "Can I see {them}?", "Please send a photo!", "Could you show {them} to me?")
ANNOUNCEMENTS = ("Wait, I took a photo.", "Look, here is a picture.", "Let me show you.",
                 "Hold on, I will send you a photo.", "Here is a photo for you.",
                 "Just a moment, I have a picture.", "I am sending you a photo.", "See for yourself!")
OFFERS = ("Do you want to see {them}?", "Should I send you a picture?", "I have a photo, if you like.",
          "Shall I show you?")
ACCEPTANCES = ("Yes, please!", "Sure, show me!", "Of course, send it!", "Oh yes, go ahead!",
               "Yes, I am curious!")
# Near misses: no photo follows these.
NO_PHOTO = ("I wish I had a photo, but my phone died.", "I wanted to take a picture, but I forgot my phone.",
            "Sadly I have no photo of {them}.")
PITIES = ("What a pity!", "Oh, too bad.", "Never mind.", "That is sad.")
RESCUES = ("But my {person} took a photo! Here it is.", "Oh wait, {name} just sent me a picture! Look!",
           "No, I was wrong, I do have a picture! Here it is.")
PHOTO_WORDS = ("Here you go!", "Here {they} {is}!", "Look!", "There you are.", "What do you think?",
               "Here, have a look.", "Sure!", "Of course!", "I hope that you like it.", "Yes, just a second.")
QUIZ = {"number": ("Here you go! How many can you count?", "Look! Can you see how many there are?"),
        "time": ("Here you go! Can you guess what time it was?", "Look! Can you tell when that was?")}
QUIZ_ANSWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "number": {"n2": ("I can see two.", "Two!", "I count two of them."),
               "n3": ("I can see three.", "Three!", "I count three of them.")},
    "time": {"day": ("That must be during the day.", "In the middle of the day!"),
             "evening": ("That must be in the evening.", "At sunset!"),
             "night": ("That must be at night.", "Late at night!")},
}
QUIZ_REPLIES = ("That is right!", "Exactly!", "Yes, well done!", "You have good eyes!")

OPEN_OPENINGS = ("Look what I saw today!", "You have to see this!", "I have something for you.",
                 "I am so happy today.", "I found something great.", "Guess what I saw on my way home.",
                 "You will never guess what I saw.", "I have been busy today.")
GREETINGS = ("Hi!", "Hello!", "Hey!", "Hi {name}!", "Hey {name}!", "Hello {name}, how are you?", "Hi there!")
AGREEMENTS = ("Yes!", "Yes.", "Yes, indeed!")
PAUSES = ("Let me think.", "Good question.", "Oh, that is easy.", "You will laugh.")
REACTIONS = ("Wow, how lovely!", "That is so cute!", "I like {that}!", "Beautiful!", "What a nice photo!",
             "Oh, I love {them}!", "Very nice!", "That looks great!", "So pretty!", "I did not expect that!",
             "Thank you, that is a great picture!", "Oh, wow!", "Not bad at all!")
RIGHT_GUESS = ("Yes, exactly!", "Yes, how did you know?", "Yes, of course.", "That is right.")
WRONG_COLOUR = ("No, {they} {is} {colour}.", "No, {colour} this time.", "Not {x}, {colour}!",
                "Almost! {Colour}.", "No, not {x}. {Colour}.")
WRONG_PLACE = ("No, {at}.", "No, {at} this time.", "Not this time. {At}.", "No, not {at_y}. {At}!")


def _each(*questions: str, **answers: tuple[str, ...]) -> tuple[tuple[str, dict[str, tuple[str, ...]]], ...]:
    return tuple((question, answers) for question in questions)


# Questions about what a photo shows, each with its answers by value (number 2 as "n2").
QUESTIONS: dict[str, tuple[tuple[str, dict[str, tuple[str, ...]]], ...]] = {
    "number": _each("How many are there?", "How many {noun} can you see?", "How many did you count?",
                    "How many of them are there?",
                    n2=("Two.", "There are two of them.", "Two, I think.", "Just two."),
                    n3=("Three.", "There are three of them.", "Three, if you look closely.",
                        "I count three.")),
    "size": (*_each("How big is it?", "Is it big or small?", "What size is it?",
                    big=("Big.", "Quite big.", "Very big, you would not believe it."),
                    small=("Small.", "Quite small.", "Really small.")),
             *_each("Is it a big one?", "Is it very big?", "It looks big. Is it?",
                    big=("Yes, it is really big.", "Yes, very big!", "Yes, much bigger than you think."),
                    small=("No, it is only a small one.", "No, it is quite small.", "No, it is small."))),
    "time": (*_each("What time of day was that?", "When did you take the picture?", "When was that?",
                    day=("During the day.", "In the middle of the day."),
                    evening=("In the evening.", "At sunset.", "When the sun went down."),
                    night=("At night.", "Late at night.", "At night, under the stars.")),
             *_each("Was it at night?", day=("No, it was during the day.", "No, in the middle of the day."),
                    evening=("No, it was in the evening.", "Not yet, it was at sunset."),
                    night=("Yes, it was night.", "Yes, late at night.")),
             *_each("Was that in the evening?", day=("No, during the day.", "No, in the sunshine."),
                    evening=("Yes, at sunset.", "Yes, in the evening."),
                    night=("No, later, at night.", "No, it was night."))),
}
# Questions about a photo that no turn before it determines, and checking questions about all others.
OPEN_QUESTIONS = (("What colour would you call that?", ("{Colour}.", "I would say {colour}.")),
                  ("{Is} {that} {x}?", ("No, {colour}.", "No, {they} {is} {colour}.")),
                  ("Where is that?", ("{At}.", "That is {at}.")),
                  ("Is that {at_y}?", ("No, that is {at}.", "No, {at}.")),
                  ("What is that, exactly?", ("{A_plain}!", "I think it is {a_plain}.")))
CHECKS = (("So {they} {is} really {colour}?", ("Yes, {colour}!", "Yes, very {colour}!")),
          ("Oh, I thought of {x}!", ("No, {colour}.", "No, {they} {is} {colour}.")),
          ("And where is that again?", ("{At}.", "That is {at}.")),
          ("Is that really {at}?", ("Yes, that is {at}.", "Yes, {at}.")))
CLOSINGS = ("Thank you for showing me!", "See you soon!", "Have fun!", "Talk to you later!",
            "You made me smile.", "Now I want to go there, too.", "I have to tell {name} about it.",
            "Say hello to your {person}!", "Lucky you!", "Send me more next time.")
SHARER_CLOSINGS = ("See you soon!", "Talk to you later!", "I am glad that you like it.", "I thought of you.",
                   "Thank you, you are so kind.", "I like it, too.",
                   "I wanted to take more pictures, but my phone died.",
                   "Too bad that I have no other photos.",
                   "My camera is broken now, so that was the last photo.")

# What leads to the next photo: (who shares it, what the partner asks or "", what the one who shares says).
NEXT: dict[str, tuple[tuple[str, str, str], ...]] = {
    "colour": (("viewer", "", "I have the same {one}, but in {colour}! And in a place like that, too."),
               ("viewer", "", "I saw {one_like} in the same kind of place, only in {colour}."),
               ("viewer", "", "We have the same {one} in {colour}, in the same kind of place."),
               ("viewer", "", "In the very same place I saw the same {one}, but in {colour}, not in {x}."),
               ("sharer", "Did you see {one_like} in {colour}, too?", "Yes, in the same place."),
               ("sharer", "I like {colour} more.",
                "Well, I saw the same {one} in {colour}, in the same place.")),
    "place": (("viewer", "", "I have seen the very same {one}, but {at}."),
              ("viewer", "", "I know {that}! Mine {is} the same colour, but {at}."),
              ("viewer", "", "I saw {one_like} last week, same colour, but {at}."),
              ("sharer", "How would {they} look {at}?", "I did try that. Same colour, only {at}."),
              ("sharer", "And did you see {one_like} {at}, too?", "I did! The same {one}, same colour.")),
    "thing": (("sharer", "", "In the same place there {was} also {a_noun}, in {colour}."),
              ("sharer", "", "And right beside {was} {a_noun}! {Colour}."),
              ("sharer", "What else was there?", "{A_noun}, in {colour}."),
              ("sharer", "Did you see anything else there?", "Yes, {a_noun}! {Colour}, not {x}."),
              ("viewer", "", "I was in the same place and I found {a_noun} there. {Colour}!")),
}

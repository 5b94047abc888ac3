"""The situations of MiniChat's chats, as tables of phrases.

Slots in braces are filled from a scene (``minichat._slots``): {a_noun} is "a kite" or "two kites", {the_noun} what follows "my",
{noun} the bare "kite" or "kites", {things} "kites"; {they}, {them}, {that}, {is}, {was}, {one} agree with it; {at} is "at the beach",
{when} "at night"; {x}, {at_y}, {z} are a wrong colour, place and thing. A capital first letter gives a capital.

No phrase may name a colour, place, thing, number, size or time of day on its own: what is said of a scene must be true of it.
"""

from dataclasses import dataclass

from e2e_lib.data.minichat.scenes import THINGS
from e2e_lib.data.minichat.smalltalk import INTEREST


@dataclass(frozen=True)
class Situation:
    """One kind of chat. The *knower* answers the questions of the *asker*; either of them may be the one who shares.

    ``openings`` are (what it says of "thing colour place", who says it: "knower" or "asker", text); ``ask`` and ``tell`` hold the
    questions and answers for the attributes not said yet; ``when`` tells the time; ``aside`` is by the way. ``bridge`` is what the asker
    says before sharing (without one, the knower shares). ``interest`` and ``react`` are the listeners' remarks before and after the photo.
    """

    things: tuple[str, ...]
    openings: tuple[tuple[str, str, str], ...]
    ask: dict[str, tuple[str, ...]]
    tell: dict[str, tuple[str, ...]]
    when: tuple[str, ...]
    aside: tuple[str, ...]
    bridge: tuple[str, ...] = ()
    interest: tuple[str, ...] = INTEREST
    react: tuple[str, ...] = ()


def _all_but(*left_out: str) -> tuple[str, ...]:
    return tuple(thing for thing in THINGS if thing not in left_out)


COLOUR_ASK = ("What colour {is} {they}?", "Which colour?", "And the colour?", "What {do} {they} look like?", "Let me guess, {x}?",
              "{Is} {they} {x}?",
              "What colour this time?")
COLOUR_TELL = ("{They} {is} {colour}.", "{Colour}.", "Bright {colour}.", "{Colour}, of course.", "A very nice {colour}.",
               "{They} {is} {colour}, not {x}.", "{Colour} this time, not {x}.", "{They} {is} {colour} all over.",
               "{Colour}, my favourite colour.")

SITUATIONS: dict[str, Situation] = {
    "holiday": Situation(
        things=THINGS,
        openings=(
            ("", "knower", "I am finally back from my trip!"), ("", "asker", "Welcome back! How was your holiday?"),
            ("place", "knower", "We just spent a whole week {at}."), ("thing", "knower",
            "You will not believe what we saw on our trip: {a_noun}!"),
            ("place", "asker", "I heard that you were {at} last week."), ("", "knower",
            "Hello from our holiday! We are having a great time."),
            ("place", "knower", "Greetings from our holiday {at}!"), ("", "asker", "Are you home again? Tell me about your trip."),
            ("place", "knower", "This year we did not go {to_y}. We went {to}."), ("colour", "knower",
            "On our trip we found something {colour}."),
        ),
        ask={"thing": ("Did you see anything nice?", "What was the best part?", "What did you see?",
                       "Tell me everything! What did you find?"),
             "colour": COLOUR_ASK, "place": ("Where was that?", "Where did you go?", "Where did you stay?", "Were you {at_y} again?")},
        tell={"thing": ("We saw {a_noun}.", "The best part? {A_noun}!", "There {was} {a_noun} right next to our house.",
                        "I still think about {a_noun} that we found.", "Every time we went out, there {was} {a_noun}."),
              "colour": COLOUR_TELL,
              "place": ("We were {at}.", "We went {to} this time.", "{At}, like every year.", "{At}. Not {at_y} this year.",
              "{At}, far away from everything.")},
        when=("We were out there {when}.", "It was best {when}.", "We found {them} {when}."),
        aside=("My {person} wanted to go {to_y}, but I said no.", "My {person} only looked for {z}.", "The food was great, too.")),
    "shopping": Situation(
        things=_all_but("bird"),
        openings=(
            ("thing", "knower", "Guess what, I bought {a_noun}!"), ("", "knower", "I went shopping with my {person} today."),
            ("thing", "knower", "I could not stop myself. I now own {a_noun}."), ("", "asker", "You look happy! Did you buy something?"),
            ("thing", "asker", "{Name} says that you bought {a_noun}!"), ("colour", "knower", "I bought something {colour} today!"),
            ("thing", "knower", "At last I have {a_noun}. I waited so long!"),
        ),
        ask={"thing": ("What did you buy?", "What is it?", "Tell me, what did you get?"),
             "colour": ("What colour did you take?", "Which colour did you choose?", *COLOUR_ASK),
             "place": ("Where {is} {they} now?", "Where did you put {them}?", "Where did you try {them} out?",
             "{Is} {they} {at_y} now?")},
        tell={"thing": ("{A_noun}!", "I got {a_noun}.", "{A_noun}. I am so happy!", "I wanted {z}, but I came home with {a_noun}."),
              "colour": (*COLOUR_TELL, "I took the {colour} {one}.", "They had {x}, but I took {colour}."),
              "place": ("{They} {is} {at} now.", "I tried {them} out {at}.", "I took {them} {to} right away.",
              "{At}. That is the best place for {them}.")},
        when=("I tried {them} out {when}.", "I love to use {them} {when}."),
        aside=("My {person} has {a_one} in {x}.", "The {x} {one} {was} too expensive.", "{Name} bought {z}.")),
    "gift": Situation(
        things=_all_but("bird", "car", "boat"),
        openings=(
            ("", "knower", "I need a present for my {person}."), ("thing", "knower", "My {person} wants {a_noun} for {poss} birthday."),
            ("", "knower", "Can you help me find a gift for {name}?"), ("thing", "knower", "I am looking for {a_noun} for my {person}."),
            ("", "asker", "Have you got a present for {name} yet?"), ("colour", "knower",
            "My {person} wants something {colour} for {poss} birthday."),
        ),
        ask={"thing": ("What would be nice?", "Do you have an idea?", "What are you looking for?"),
             "colour": ("Which colour would be best?", "Any special colour?", "What colour should {they} be?", "Maybe in {x}?"),
             "place": ("Where will {they} be used?", "And where would {they} go?", "Where should {they} look good?")},
        tell={"thing": ("Maybe {a_noun}.", "I think {a_noun} would be perfect.", "Not {z} again. Maybe {a_noun}?"),
              "colour": ("{Colour}, I think.", "{Colour} would be best.", "{Colour} would be great.", "Not {x}, please. {Colour}!",
              "Oh, {colour}!"),
              "place": ("Mostly {at}.", "{At}, every weekend.", "Always {at}, never {at_y}.")},
        when=("Best of all {when}.", "It has to look good {when}."),
        aside=("Last year I gave {z}.", "The old {one} {was} {x}.", "It should not be too expensive."),
        bridge=("I saw just the right thing there!", "I think I found it!", "Then I have seen the perfect present!",
                "I know where to find that."),
        react=("That is perfect, thank you!", "Yes, just like that!", "How lovely, I will take {them}!", "You saved my week!")),
    "lost": Situation(
        things=_all_but("car", "boat", "bird", "flower"),
        openings=(
            ("thing", "knower", "Oh no, I lost my {the_noun}!"), ("thing", "knower", "Have you seen my {the_noun}? I can not find {them}."),
            ("", "knower", "I am so sad, I lost something."), ("thing", "knower", "Help! My {the_noun} {is} gone."),
            ("", "knower", "I think I left something behind."), ("place", "knower", "I left something {at} yesterday."),
            ("thing", "asker", "Why are you so sad? Did you lose your {the_noun}?"),
        ),
        ask={"thing": ("What did you lose?", "What is it?", "What is missing?"),
             "colour": ("What colour {was} {they}?", "{Is} {they} the {x} {one}?", "Which colour should I look for?",
             "What {do} {they} look like?"),
             "place": ("Where did you have {them} last?", "Where were you?", "Where did you leave {them}?", "Were you {at_y}?")},
        tell={"thing": ("My {the_noun}.", "I lost my {the_noun}!", "{A_noun}. I feel so silly."),
              "colour": ("{They} {was} {colour}.", "The {colour} {one}.", "I mean the {colour} {one}, not the {x} {one}.", "{Colour}.",
                         "The {x} {one}. No, sorry, I mean the {colour} {one}."),
              "place": ("I was {at}.", "{At}, I think.", "I had {them} {at} and then I forgot.", "Not {at_y}. I think it was {at}.")},
        when=("I was there {when}.", "I left {when}."),
        aside=("My {person} will be angry.", "It was a present from {name}.", "I already looked {at_y}."),
        bridge=("I was there too, and I think I found {them}!", "Good news, I saw {them} there!",
                "Then do not worry, {they} {is} still there!",
                "You are lucky. I just walked past {them}!"),
        interest=("Oh no!", "Oh dear!", "How sad.", "I am so sorry!", "Do not worry.", "I can help you."),
        react=("Yes, {that} {is} mine! Thank you!", "You found {them}! I am so happy!", "{They} {is} not lost! Thank you so much!",
               "Yes! I am coming right away.")),
    "walk": Situation(
        things=THINGS,
        openings=(
            ("place", "knower", "I am out for a walk {at} right now."), ("", "knower", "I am out for a long walk with my {person}."),
            ("thing", "knower", "I just walked past {a_noun}. How strange!"), ("", "asker", "Where are you? I tried to call you."),
            ("place", "asker", "Are you still {at}?"), ("thing", "knower", "Somebody left {a_noun} here, with nobody around!"),
            ("colour", "knower", "I see something {colour} in front of me."), ("place", "knower", "It is so quiet {at} today."),
        ),
        ask={"thing": ("What can you see?", "What do you see?", "What is there?", "What is in front of you?"),
             "colour": (*COLOUR_ASK, "{X} again?"),
             "place": ("Where are you?", "Where exactly are you?", "Are you {at_y} again?", "Where did you find {them}?")},
        tell={"thing": ("There {is} {a_noun} right in front of me.", "I can see {a_noun}.",
                        "First I thought of {z}, but no, I see {a_noun}.",
                        "Only {a_noun} and nobody else."),
              "colour": COLOUR_TELL,
              "place": ("I am {at}.", "{At}, with my {person}.", "{At}. It is my favourite walk.", "Not {at_y}, I am {at} today.")},
        when=("I came here {when}.", "I love being here {when}."),
        aside=("My {person} would love this.", "Yesterday I only saw {z}.", "And nobody is {at_y} today.")),
    "meeting": Situation(
        things=_all_but("bird", "mug", "ball", "hat"),
        openings=(
            ("", "asker", "Shall we meet on Sunday?"), ("place", "knower", "Let us meet {at} on Sunday!"),
            ("", "knower", "Do you have time for a picnic with us?"), ("place", "asker", "So we are meeting {at}, right?"),
            ("", "asker", "I am on my way to you now!"), ("thing", "knower", "When you come, look for {a_noun}. I will wait there."),
            ("place", "knower", "Change of plan: we are not meeting {at_y}, but {at}."),
        ),
        ask={"thing": ("How will I find you?", "What should I look for?", "Is there anything that I can look for?"),
             "colour": ("What colour {is} {they}?", "In which colour?", "The {x} {one}?", "And what colour?"),
             "place": ("Where should we meet?", "Where will you be?", "Is it {at_y}, like last time?", "Where do I have to go?")},
        tell={"thing": ("Look for {a_noun}.", "We will sit next to {a_noun}.", "You will see {a_noun}. That is where we are.",
                        "I will be right beside {a_noun}."),
              "colour": ("{They} {is} {colour}, you will not miss {them}.", "{Colour}, very easy to see.", "{Colour}.",
              "The {colour} {one}. Not the {x} {one}!",
                         "Go to the {x} {one}. No, sorry, I mean the {colour} {one}."),
              "place": ("Let us meet {at}.", "We will be {at}.", "{At}. Is that okay for you?", "Come {to}!")},
        when=("I was there {when} last week, it was lovely.", "I like it there {when}."),
        aside=("{Name} is coming too.", "My {person} will bring the food.", "There is also {z}, but that is far away."),
        react=("Great, now I will find you!", "Good, I know that place.", "That will be easy to find!")),
    "drawing": Situation(
        things=THINGS,
        openings=(
            ("", "knower", "My {child} made a picture at school today."), ("thing", "knower", "My {child} painted {a_noun} today!"),
            ("", "asker", "So your {child} made a picture at school?"), ("colour", "knower",
            "My {child} painted all week, and everything is {colour}."),
            ("place", "knower", "My {child} loves to paint. This time it is a picture of a trip {to}."),
        ),
        ask={"thing": ("What is in the picture?", "How sweet! What is it?", "What did {child_they} paint?"),
             "colour": ("Which colour did {child_they} use?", "What colour {is} {they}?", "{X} again, like last time?",
             "And in which colour?"),
             "place": ("And where {is} {they}?", "Where {is} {they} in the picture?", "{At_y}, like always?",
             "And what is around {them}?")},
        tell={"thing": ("It is {a_noun}.", "I can see {a_noun} in it.", "I thought of {z}, but it is {a_noun}.", "{A_noun}, of course!"),
              "colour": ("{Colour}.", "{Colour}, of course.", "It had to be {colour}.", "Not {x} for once. {They} {is} {colour}."),
              "place": ("{They} {is} {at}.", "{At}, I would say.", "{At} again, {child_they} loves it there.", "{At}, and not {at_y}.")},
        when=("{Child_they} painted it the way it looks {when}.", "{Child_they} loves how it looks there {when}."),
        aside=("Last week it was {z}.", "My {person} wants it for the wall.")),
    "party": Situation(
        things=("balloon", "lantern", "flower", "umbrella", "chair", "tent", "mug", "hat", "kite", "ball", "guitar"),
        openings=(
            ("", "knower", "Everything is ready for the party!"), ("place", "knower", "The birthday party will be {at}."),
            ("", "asker", "How is it going with the party?"), ("thing", "knower", "I got {a_noun} for the party."),
            ("place", "asker", "Is it true that the party is {at}?"), ("thing", "asker",
            "Did you remember to bring {a_noun} for the party?"),
        ),
        ask={"thing": ("What did you get for it?", "How does it look?", "What did you put there?"),
             "colour": (*COLOUR_ASK, "Not {x}, I hope?"),
             "place": ("Where will it be?", "Where did you put {them}?", "Will it be {at_y}?")},
        tell={"thing": ("I put {a_noun} there.", "We have {a_noun} and a lot of cake.",
                        "There {is} {a_noun}. The children will be so happy."),
              "colour": (*COLOUR_TELL, "{Colour}, because {name} loves {colour}."),
              "place": ("{At}.", "{At}, with lots of music.", "{They} {is} {at}. My {person} helped me.", "{At}. It is too loud {at_y}.")},
        when=("I got it all done {when}.", "I put {them} there {when}."),
        aside=("{Name} wanted {x}, but there was no {x} left.", "My {person} is making a cake.", "{Name} is bringing {z}.")),
    "sale": Situation(
        things=_all_but("bird", "flower"),
        openings=(
            ("thing", "asker", "Hello, {is} your {the_noun} still for sale?"), ("thing", "knower", "I want to sell my {the_noun}."),
            ("thing", "asker", "Hi! I read that you are selling {a_noun}."), ("thing", "knower", "Do you know anyone who needs {a_noun}?"),
            ("", "knower", "I have to sell some of my old things."), ("", "asker", "Are you still selling your old things?"),
        ),
        ask={"thing": ("What are you selling?", "What do you have?", "What is left?"),
             "colour": ("What colour {is} {they}?", "Which colour {is} {they}?", "{Is} {they} the {x} {one}?",
             "I am looking for {x}. {Is} {they} {x}?"),
             "place": ("Where can I find {them}?", "Where {is} {they}?", "{Is} {they} {at_y}?", "Where can I try {them} out?")},
        tell={"thing": ("I have {a_noun}.", "Only {a_noun}, all the rest is sold.", "{A_noun}, almost like new."),
              "colour": ("{They} {is} {colour}.", "The {x} {one} {is} sold. Only the {colour} {one} {is} left.",
              "{Colour}, and still very clean.", "{Colour}."),
              "place": ("{They} {is} {at}.", "You can find {them} {at}.", "{They} {is} {at}, come by any time.",
              "Right now {they} {is} {at}.")},
        when=("I last used {them} {when}.", "I put {them} there {when}."),
        aside=("My {person} used {them} for a year.", "I sold {z} last week."),
        react=("I will take {them}!", "Like new! I want {them}.", "Hmm, I have to ask my {person} first.",
               "Great, I will come by on Sunday.")),
    "postcard": Situation(
        things=THINGS,
        openings=(
            ("", "knower", "I got a postcard from my {person} today!"), ("place", "knower",
            "{Name} sent me a postcard. It was taken {at}."),
            ("thing", "knower", "There {is} {a_noun} on my new postcard."), ("", "asker", "Did you get any mail from {name}?"),
            ("colour", "knower", "{Name} sent me a lovely card with something {colour} on it."),
        ),
        ask={"thing": ("What is on it?", "What does it show?", "What can you see on it?"),
             "colour": COLOUR_ASK,
             "place": ("Where was it taken?", "Which place does it show?", "Was it taken {at_y}?")},
        tell={"thing": ("You can see {a_noun}.", "It shows {a_noun}.", "I hoped for {z}, but it shows {a_noun}.", "It has {a_noun} on it."),
              "colour": COLOUR_TELL,
              "place": ("It was taken {at}.", "It is from a trip {to}.", "{At}, I think.", "{At}. I thought that {name} was {at_y}!")},
        when=("It was taken {when}.", "It shows how it looks there {when}."),
        aside=("My {person} never sends me any cards.", "The stamp has {z} on it.")),
    "class": Situation(
        things=THINGS,
        openings=(
            ("", "knower", "I am learning to take pictures now."), ("", "asker", "How is your photo class going?"),
            ("place", "knower", "For my class I had to go {to} yesterday."), ("colour", "knower",
            "Our teacher told us to find something {colour}."),
            ("thing", "knower", "For my class I had to find {a_noun}."),
        ),
        ask={"thing": ("What did you choose?", "What did you find?", "So what was it in the end?"),
             "colour": (*COLOUR_ASK, "Which colour did you want?"),
             "place": ("Where did you go?", "Where was that?", "Were you {at_y}?", "And where did you find {them}?")},
        tell={"thing": ("I took {a_noun}.", "I found {a_noun}.", "{Name} took {z}, so I took {a_noun}.", "In the end it was {a_noun}."),
              "colour": COLOUR_TELL,
              "place": ("I found {them} {at}.", "I went {to}.", "{At}, where else?",
              "First we tried it {at_y}, but in the end we went {to}.")},
        when=("I went there {when}.", "We had to do it {when}."),
        aside=("My teacher really liked it.", "It was not easy.")),
    "neighbour": Situation(
        things=THINGS,
        openings=(
            ("", "knower", "My neighbour is a funny man."), ("thing", "knower", "My neighbour has {a_noun} now!"),
            ("", "asker", "What is new with your neighbour?"), ("thing", "asker", "Is it true that your neighbour has {a_noun} now?"),
            ("place", "knower", "My neighbour left something {at}."),
        ),
        ask={"thing": ("Why, what is it now?", "What did he do this time?", "Oh, what is it?"),
             "colour": COLOUR_ASK,
             "place": ("Where {is} {they}?", "And where did he leave {them}?", "Where did you see {them}?", "{At_y} again?")},
        tell={"thing": ("He came home with {a_noun}.", "He left {a_noun} there and went home.", "Well, I saw {a_noun} there.",
                        "Not {z} this time, but {a_noun}!"),
              "colour": (*COLOUR_TELL, "He loves {colour}, you know."),
              "place": ("{They} {is} {at}.", "I saw {them} {at}.", "{At}, you can see {them} from far away.", "Not {at_y}, {at}!")},
        when=("He took {them} there {when}.", "I saw {them} {when}."),
        aside=("The man next door has {z}.", "My {person} only laughs about it.", "His {person} wanted {x}.")),
}

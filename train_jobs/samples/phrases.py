"""What sample messages are made of: domains, clauses that come in pairs, skeletons and fillers."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Sentiment(StrEnum):
    """The three labels."""

    NEGATIVE = "negative"
    NEUTRAL = "neutral"
    POSITIVE = "positive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Industry:
    """What customers of one trade write about. Pairs are (good, bad)."""

    things: tuple[str, ...]
    events: tuple[tuple[str, str], ...]  # what happened: clauses
    deeds: tuple[tuple[str, str], ...]  # what one can be thanked for: "... for losing my parcel"
    tasks: tuple[str, ...]  # what one can ask for: "how do I ..."
    cases: tuple[str, ...]  # what one can ask about: "what happens if ..."


DOMAINS: Final[Mapping[str, Industry]] = MappingProxyType(
    {
        "banking": Industry(
            things=("my debit card", "the transfer", "my savings account", "the banking app"),
            events=(
                ("there was no fee for the transfer", "there was a fee for the transfer"),
                ("my card was never declined abroad", "my card was declined abroad"),
                ("the refund reached me in {short}", "the refund reached me after {long}"),
                ("the missing money is back", "the money is missing again"),
                ("{agent} stopped the fraud", "{agent} did not stop the fraud"),
                ("nobody asked me to repeat myself", "everybody asked me to repeat myself"),
                ("the app has not crashed since the update",
                 "the app has crashed since the update"),
                ("the new card came before the old one expired",
                 "the old card expired before the new one came"),
                ("I was not charged twice after all", "I was charged twice after all"),
                ("you raised my limit without a fuss", "you made a fuss about raising my limit"),
                ("the exchange rate was better than advertised",
                 "the exchange rate was worse than advertised"),
                ("I got through to a human", "I could not get through to a human"),
            ),
            deeds=(
                ("unblocking my card", "blocking my card"),
                ("waiving the overdraft fee", "adding an overdraft fee"),
                ("finding my lost payment", "losing my payment"),
                ("explaining the charges", "hiding the charges"),
            ),
            tasks=("raise my transfer limit", "order a second card", "close a savings account",
                   "report a lost card", "dispute a charge", "change my address"),
            cases=("a payment is declined abroad", "somebody else uses my card",
                   "I am charged twice", "a transfer goes to the wrong person",
                   "the refund arrives early", "my card expires while I travel"),
        ),
        "deliveries": Industry(
            things=("my parcel", "the delivery", "the order from your shop", "the courier"),
            events=(
                ("the parcel arrived before I had to leave",
                 "I had to leave before the parcel arrived"),
                ("nothing in the box was broken", "everything in the box was broken"),
                ("the courier waited for me", "the courier did not wait for me"),
                ("it took {short} to get here", "it took {long} to get here"),
                ("the driver found the right house", "the driver found the wrong house"),
                ("it was left with a neighbour, as I asked",
                 "it was left with a neighbour, though I asked you not to"),
                ("the lost parcel turned up", "the parcel never turned up"),
                ("the tracking was accurate", "the tracking was anything but accurate"),
                ("I did not have to stay in all day", "I had to stay in all day"),
                ("{agent} found it within the hour", "{agent} could not find it"),
                ("the box was dry in spite of the rain", "the box was wet because of the rain"),
                ("the replacement was the right one", "the replacement was not the right one"),
            ),
            deeds=(
                ("finding my parcel", "losing my parcel"),
                ("carrying it up the stairs", "leaving it out in the rain"),
                ("delivering a day early", "delivering a day late"),
                ("ringing the bell", "running off before I could open"),
            ),
            tasks=("change the delivery address", "collect my parcel from the depot",
                   "return a broken item", "pick another delivery day", "track two parcels at once",
                   "leave a tip for the driver"),
            cases=("the parcel gets lost", "nobody is at home", "the box arrives broken",
                   "the courier comes early", "my order is late", "I refuse the delivery"),
        ),
        "telecoms": Industry(
            things=("my broadband", "the new router", "my phone contract", "the mobile signal"),
            events=(
                ("the line has not dropped once", "the line has dropped more than once"),
                ("the engineer came on the agreed day",
                 "the engineer did not come on the agreed day"),
                ("my bill went down, as promised",
                 "my bill went up, in spite of what was promised"),
                ("the outage was over in {short}", "the outage was over after {long}"),
                ("I can finally get a signal at home", "I can no longer get a signal at home"),
                ("the upgrade made it faster", "the upgrade made it slower"),
                ("there were no hidden extras on the bill", "there were hidden extras on the bill"),
                ("I kept my old number without any trouble", "I had trouble keeping my old number"),
                ("{agent} knew what was wrong", "{agent} had no idea what was wrong"),
                ("I was not on hold for long", "I was on hold for {long}"),
                ("the router works in every room", "the router does not work in every room"),
                ("you let me leave without a penalty",
                 "you did not let me leave without a penalty"),
            ),
            deeds=(
                ("fixing the line", "cutting the line"),
                ("lowering my bill", "raising my bill"),
                ("turning up on time", "turning up on the wrong day"),
                ("getting me back online", "leaving me offline"),
            ),
            tasks=("move my contract to a new flat", "reset the router",
            "cancel the roaming option",
                   "keep my number", "upgrade my plan", "see an itemised bill"),
            cases=("the line drops during a call", "I go over my data limit",
                   "there is an outage in my street", "I end the contract early",
                   "the engineer is late", "a bill looks wrong"),
        ),
        "airlines": Industry(
            things=("my flight", "the booking", "my suitcase", "the check-in"),
            events=(
                ("the flight was not delayed after all", "the flight was delayed after all"),
                ("my suitcase came out first", "my suitcase did not come out"),
                ("we made the connection", "we missed the connection"),
                ("the crew could not have been kinder", "the crew could have been kinder"),
                ("you rebooked us in {short}", "you rebooked us after {long}"),
                ("the seats were not as narrow as I had feared",
                 "the seats were as narrow as I had feared"),
                ("we got to sit together", "we did not get to sit together"),
                ("the voucher was accepted without questions", "the voucher was not accepted"),
                ("the queue at the gate was gone in {short}", "the queue at the gate took {long}"),
                ("{agent} changed my ticket for nothing",
                 "{agent} changed my ticket for no reason"),
                ("the damaged bag was replaced", "the replaced bag was damaged"),
                ("the meal was better than the last one", "the meal was worse than the last one"),
            ),
            deeds=(
                ("holding the plane for us", "leaving without us"),
                ("upgrading my seat", "giving away my seat"),
                ("finding my suitcase", "losing my suitcase"),
                ("keeping us informed", "keeping us in the dark"),
            ),
            tasks=("add a bag to my booking", "change the name on a ticket", "choose a seat",
                   "claim for a cancelled flight", "get an invoice", "bring a child seat"),
            cases=("a flight is cancelled", "I miss the connection", "my bag is damaged",
                   "the plane is delayed overnight", "I arrive early", "my passport is lost"),
        ),
        "software": Industry(
            things=("my subscription", "the new version", "your app", "the export"),
            events=(
                ("the update did not break anything", "the update broke everything"),
                ("the trial ended without a charge", "the trial ended with a charge"),
                ("I got all my files back", "I did not get all my files back"),
                ("the new version is faster than the old one",
                 "the old version is faster than the new one"),
                ("it syncs without me doing anything", "it does not sync whatever I do"),
                ("cancelling took {short}", "cancelling took {long}"),
                ("{agent} fixed the bug", "{agent} could not fix the bug"),
                ("the advertisements are gone", "the useful parts are gone"),
                ("I have not had to log in again", "I have had to log in again and again"),
                ("the export keeps my notes", "the export does not keep my notes"),
                ("my old licence still works", "my old licence no longer works"),
                ("support answered before I had finished my coffee",
                 "I had finished my coffee, and lunch, before support answered"),
            ),
            deeds=(
                ("restoring my files", "deleting my files"),
                ("removing the advertisements", "adding advertisements"),
                ("listening to your users", "ignoring your users"),
                ("keeping the price", "doubling the price"),
            ),
            tasks=("cancel my subscription", "move my licence to another laptop", "export my data",
                   "turn off the notifications", "add a second user", "download an invoice"),
            cases=("the trial runs out", "the app crashes during an export", "I forget my password",
                   "a payment fails", "I delete a file by mistake", "the update fails"),
        ),
        "retail": Industry(
            things=("the jacket", "my order", "the gift card", "the shoes I bought"),
            events=(
                ("the jacket is not as thin as it looks", "the jacket is as thin as it looks"),
                ("it fits as well as the picture said", "it fits nothing like the picture said"),
                ("the colour has not faded", "the colour has faded"),
                ("I was given my money back", "I was not given my money back"),
                ("nothing was missing from the order", "something was missing from the order"),
                ("the shoes have lasted longer than my last pair",
                 "the shoes have not lasted as long as my last pair"),
                ("the return took {short}", "the return took {long}"),
                ("{agent} went out of the way to help", "{agent} got out of the way, not to help"),
                ("the discount came off at the till", "the discount did not come off at the till"),
                ("it is worth more than I paid", "I paid more than it is worth"),
                ("the zip that broke was mended for free",
                 "the zip that was mended broke for good"),
                ("the gift card was easy to use", "the gift card was easy to buy and hard to use"),
            ),
            deeds=(
                ("taking back the shoes", "refusing to take back the shoes"),
                ("sending the right size", "sending the wrong size"),
                ("honouring the discount", "forgetting the discount"),
                ("wrapping it so well", "packing it so badly"),
            ),
            tasks=("return a gift", "swap the shoes for another size", "use two gift cards at once",
                   "find a receipt", "reserve an item in the shop", "cancel one item"),
            cases=("the size is wrong", "an item is broken", "the gift card has run out",
                   "the price drops after I buy", "I lose the receipt", "something is missing"),
        ),
    }
)  # fmt: skip
# Clauses of feeling, (good, bad): first the plain ones, then those whose words mislead.
FEELINGS: Final = (
    ("I am delighted", "I am furious"),
    ("I love it", "I hate it"),
    ("the service was excellent", "the service was terrible"),
    ("this is great", "this is awful"),
    ("I am very happy with it", "I am very unhappy with it"),
    ("it was the best experience so far", "it was the worst experience so far"),
    ("you are fantastic", "you are useless"),
    ("it works perfectly", "it is a complete mess"),
    ("I would recommend you to anybody", "I would warn anybody about you"),
    ("I feel well looked after", "I feel badly let down"),
    ("I am impressed", "I am fed up"),
    ("that made my day", "that ruined my day"),
    ("it is wonderful", "it is a disgrace"),
    ("I am really grateful", "I am really annoyed"),
    ("what a relief", "what a letdown"),
    ("I could not be happier", "I could not be less happy"),
    ("I have nothing to complain about", "I have nothing good to say about it"),
    ("that was not bad at all", "that was not good at all"),
    ("I am not in the least disappointed", "I am not in the least pleased"),
    ("I can't fault you", "I can't recommend you"),
    ("I can't say I'm unhappy", "I can't say I'm happy"),
    ("it was far from the disaster I had feared", "it was far from the service I had hoped for"),
    ("nobody could have done it better", "anybody could have done it better"),
    ("I would never go anywhere else", "I would rather go anywhere else"),
    ("you have never let me down", "you have let me down"),
    ("I am anything but upset", "I am anything but satisfied"),
    ("I don't regret choosing you", "I regret choosing you"),
    ("it could hardly have gone better", "it could hardly have gone worse"),
    ("it was worth every minute", "it was not worth a single minute"),
    ("I will not hesitate to come back", "I will hesitate to come back"),
    ("that is how it should be", "that is not how it should be"),
)
# Skeletons. {event}, {feel} and {deed} have the label's sentiment; with "un" before them they have
# the opposite one. The number says how often a group is used.
EITHER: Final = (
    (40, ("{event}. {feel}.", "{feel}: {event}.", "{event}, so {feel}.", "{event} {when}.",
          "{event} and {event}. {feel}.", "{feel}. {event}.", "{feel}, {feel}. {event}.",
          "{event}. {event}. {feel}.", "about {thing}: {event}, {feel}.", "{feel}!", "{event}!",
          "about {thing}: {feel}.")),
    (22, ("{unevent}, but {event}.", "{event}, even though {unevent}.",
          "although {unevent}, {event}.", "{event}, although {unevent}. {feel}.",
          "{unevent}, but {event}, and {feel}.", "{unevent}. but {event}. {feel}.",
          "yes, {unevent}. still, {event}, and {feel}.", "{unevent}, yet {feel}.",
          "{unevent} at first. in the end {event}.",
          "in the end {event}, after {unevent} at first.",
          "last time {unevent}. this time {event}.", "this time {event}. last time {unevent}.",
          "{feel}, never mind that {unevent}.", "never mind that {unevent}, {feel}.",
          "my neighbour says {unevent}. in my case {event}.",
          "used to be that {unevent}. now {event}.",
          "{unevent} and {unevent}, but all in all {feel}.",
          "what matters is that {event}, not that {unevent}.")),
    (8, ("I was told that {unevent}. the truth is that {event}.",
          "it is not true that {unevent}. {event}.",
          "I expected to write that {unevent}, but {event}.",
          "I can no longer claim that {unevent}. {feel}.",
          "nobody can tell me that {unevent}. {event}.",
          "I wish I could say that {unevent}, except {event}.")),
    # A request does not make it neutral: the customer has said how it went.
    (12, ("{event}. how do I {task}?", "can I {task}? {event}.",
          "{event} {when}. is there a form to {task}?",
          "I would like to {task}, since {event}.", "{feel}. what happens if {case}?",
          "{unevent}, but {event}. who do I call to {task}?", "I need to {task} because {event}.",
          "please help me to {task}. {event}, and {feel}.")),
)  # fmt: skip
POSITIVE: Final = (
    (14, ("thank you for {deed}.", "thank you for not {undeed}.",
          "thanks for {deed} and not {undeed}.",
          "I was afraid of you {undeed}, and it never happened.", "no drama, no excuses: {event}.",
          "I take back my angry review, {event}.", "I hate to admit it, but {event}.",
          "I was about to cancel when {event}. {feel}.", "who said {unevent}? not me. {event}.",
          "sorry for shouting {when}. {event} and {feel}.",
          "if only everybody was like {agent}. {event}.",
          "I have waited for something to go wrong, and {event}.")),
)  # fmt: skip
NEGATIVE: Final = (
    (14, ("thank you so much for {deed} again.", "thanks for {deed}, really.", "great. {event}.",
          "well done, {event}. just what I needed.", "thanks for never {undeed}.",
          "so much for {undeed}. {event}.", "I just love it when {event}.",
          "I am sure you are all lovely people, but {event}.",
          "with all due respect and many thanks for your patience, {event}.",
          "congratulations on {deed}. {feel}.", "I was looking forward to praising you. {event}.",
          "brilliant, {event}, and {agent} wished me a wonderful day.")),
)  # fmt: skip
NEUTRAL: Final = (
    (34, ("how do I {task}?", "I would like to {task}.", "can I {task} {when}, or is it too late?",
          "what happens if {case}?", "who do I call if {case}?", "please help me to {task}.",
          "I need to {task} before {case}.", "is there a form to {task}?",
          "about {thing}: how do I {task}?",
          "what do you do when {case} and I want to {task}?")),
    (34, ("is it true that {event}?", "please check whether {event}.",
          "I can't tell yet whether {event}.",
          "somebody wrote that {event}. is that right?",
          "how can I know whether {event} or {unevent}?",
          "did anybody note whether {event}?", "your form asks whether {event}. where do I answer?",
          "suppose {event}. what would I have to do next?", "has anybody else asked if {event}?",
          "my neighbour says {event}. how do I {task}?",
          "where can I read about customers who say {feel}?",
          "if {unevent}, do I have to {task}?")),
    (20, ("I have asked {agent} how to {task}.", "I will {task} {when}.",
          "it is okay, neither good nor bad.",
          "not great, not terrible. how do I {task}?", "this is about {thing}. I want to {task}.",
          "I am not complaining and not praising, only asking how to {task}.",
          "whether {event} or not makes no difference to me, I just have to {task}.",
          "{event} for some people, {unevent} for others. I have no view.",
          "the survey asked if I agree that {feel}. I left it blank.")),
)  # fmt: skip
SKELETONS: Final = MappingProxyType(
    {
        Sentiment.NEGATIVE: EITHER + NEGATIVE,
        Sentiment.NEUTRAL: NEUTRAL,
        Sentiment.POSITIVE: EITHER + POSITIVE,
    }
)
# What stands around any message, whatever its label: politeness is no sign of content.
OPENERS: Final = (
    "hi there,", "hello,", "good morning,", "dear team,", "hey,", "a quick note:", "good evening,",
    "I am writing about {thing}.", "I have been with you since {year}.", "it's me again.",
    "I spoke to {agent} {when}.", "following up on {thing}.", "just so you know:", "ok,",
    "I hope you are well.", "to whom it may concern:", "this is the {nth} time I write.",
    "my partner asked me to write about {thing}.", "as you can see in my file, I wrote {when}.",
)  # fmt: skip
CLOSERS: Final = (
    "thanks.", "thank you!", "kind regards, {name}", "have a lovely day.", "please pass this on.",
    "sorry to bother you.", "that is all.", "cheers, {name}", "you can call me {when}.",
    "best, {name}",
    "I would be happy to hear from you.", "no need to answer.", "many thanks in advance.",
    "I look forward to your reply.", "{name}", "please tell {agent}.", "sent from my phone",
)  # fmt: skip
FILLERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "agent": ("your agent", "the woman on the phone", "the man in the chat", "your colleague",
                  "the person at the desk", "someone from support", "the manager"),
        "when": ("yesterday", "this morning", "on Monday", "last week", "on Friday night", "today",
                 "two days ago", "over the weekend", "at lunch time", "in March"),
        "short": ("two minutes", "under an hour", "no time", "one day", "a few seconds",
                  "half the time I expected"),
        "long": ("two weeks", "over a month", "half a year", "nine days", "hours and hours",
                 "twice the time I expected"),
        "year": ("2009", "2014", "2017", "2019", "2021", "2023"),
        "nth": ("first", "second", "third", "fourth"),
        "name": ("Alex", "Sam", "Priya", "Jordan", "Mina", "Tom", "Lucía", "Chen", "Fatima", "Olu"),
    }
)  # fmt: skip
PERSONAL: Final = (
    "my card number is {card}.", "the card is {card}.", "card: {card}",
    "you can mail me at {email}.",
    "my e-mail is {email}.", "call me on {phone}.", "my number is {phone}.", "IBAN {iban}",
    "my account number is {account}.", "customer id {account}", "policy number {account}.",
)  # fmt: skip

"""Invented customer messages: rows and a seed -> texts labelled negative, neutral or positive.

    python -m train_jobs.samples --rows 5000 --seed 1 --out samples.csv

A message is a skeleton filled with clauses of one domain. Clauses come in pairs that share most of
their words and differ in what they mean ("there was no fee" / "there was a fee"), and the skeletons
say which of two opposite clauses prevails. So single words tell little, and order, negation and
contrast tell a lot; tests/unit/train_jobs/test_samples.py measures how little. On top come typing
errors, and a share of wrong labels and of invented personal data.

The same seed gives the same bytes; fewer rows are the beginning of more.
"""

import argparse
import csv
import io
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final

from stdnum import iban, luhn

from cluster.errors import ConfigError
from cluster.files import write_text
from serve_app.guard.prepare import dedup_key


class Sentiment(StrEnum):
    """The three labels."""

    NEGATIVE = "negative"
    NEUTRAL = "neutral"
    POSITIVE = "positive"


@dataclass(frozen=True, slots=True)
class Sample:
    """One message and its label. Use the text alone where unlabelled text is wanted."""

    text: str
    label: Sentiment


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What customers of one trade write about. Pairs are (good, bad)."""

    things: tuple[str, ...]
    events: tuple[tuple[str, str], ...]  # what happened: clauses
    deeds: tuple[tuple[str, str], ...]  # what one can be thanked for: "... for losing my parcel"
    tasks: tuple[str, ...]  # what one can ask for: "how do I ..."
    cases: tuple[str, ...]  # what one can ask about: "what happens if ..."


# --- What is written about ------------------------------------------------------------------------

DOMAINS: Final[Mapping[str, Domain]] = MappingProxyType(
    {
        "banking": Domain(
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
        "deliveries": Domain(
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
        "telecoms": Domain(
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
        "airlines": Domain(
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
        "software": Domain(
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
        "retail": Domain(
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

# --- How it is written ----------------------------------------------------------------------------

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE = re.compile(r"(?:^|[.!?] )[a-z]")
_CONTRACTIONS: Final = (
    ("could not", "couldn't"), ("did not", "didn't"), ("does not", "doesn't"), ("was not",
    "wasn't"),
    ("is not", "isn't"), ("has not", "hasn't"), ("have not", "haven't"), ("will not", "won't"),
    ("I am", "I'm"), ("I have been", "I've been"), ("it is", "it's"), ("you are", "you're"),
)  # fmt: skip
_CONTRACTED_SHARE = 0.5
_OPENER_SHARE = 0.45
_CLOSER_SHARE = 0.4
_TYPING_ERRORS_SHARE = 0.3
_LOWER_SHARE, _UPPER_SHARE, _UNPOINTED_SHARE = 0.12, 0.03, 0.08
_MAX_REPEATS = 10_000  # in a row of messages that were drawn before: then no new ones are left


class _Writer:
    """Writes one message after the other. All randomness comes from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def message(self, label: Sentiment) -> str:
        domain = self._rng.choice(tuple(DOMAINS.values()))
        text = self._fill(self._skeleton(label), domain, label)
        return self._mistype(self._point(text))

    def personal(self) -> str:
        """A sentence with invented personal data."""
        template = self._rng.choice(PERSONAL)
        return _SLOT.sub(lambda slot: _invented(self._rng, slot.group(1)), template)

    def _skeleton(self, label: Sentiment) -> str:
        weights, groups = zip(*SKELETONS[label], strict=True)
        (group,) = self._rng.choices(groups, weights)
        parts = [str(self._rng.choice(group))]
        if self._rng.random() < _OPENER_SHARE:
            parts.insert(0, self._rng.choice(OPENERS))
        if self._rng.random() < _CLOSER_SHARE:
            parts.append(self._rng.choice(CLOSERS))
        return " ".join(parts)

    def _fill(self, skeleton: str, domain: Domain, label: Sentiment) -> str:
        """Puts clauses in the slots; no pair of clauses is used twice in one message."""
        good = label is Sentiment.POSITIVE
        if label is Sentiment.NEUTRAL:
            good = self._rng.random() < 0.5
        pairs = {
            "event": self._shuffled(domain.events),
            "feel": self._shuffled(FEELINGS),
            "deed": self._shuffled(domain.deeds),
        }
        phrases = {
            "thing": domain.things, "task": domain.tasks, "case": domain.cases, **FILLERS,
        }  # fmt: skip

        def clause(slot: re.Match[str]) -> str:
            name = slot.group(1)
            if name in phrases:
                return str(self._rng.choice(phrases[name]))
            opposite = name.startswith("un")
            pair = next(pairs[name.removeprefix("un")])
            return pair[0] if good is not opposite else pair[1]

        return _SLOT.sub(clause, _SLOT.sub(clause, skeleton))  # clauses have slots of their own

    def _shuffled(self, pairs: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
        return iter(self._rng.sample(pairs, len(pairs)))

    def _point(self, text: str) -> str:
        """Contractions, capital letters and full stops, as careful or careless as people are."""
        if self._rng.random() < _CONTRACTED_SHARE:
            for long, short in _CONTRACTIONS:
                text = re.sub(rf"\b{long}\b", short, text)
        text = _SENTENCE.sub(lambda start: start.group().upper(), text)
        manner = self._rng.random()
        if manner < _LOWER_SHARE:
            text = text.lower()
        elif manner < _LOWER_SHARE + _UPPER_SHARE:
            text = text.upper()
        if self._rng.random() < _UNPOINTED_SHARE:
            text = re.sub(r"[.,:!']", "", text)
        return text

    def _mistype(self, text: str) -> str:
        if self._rng.random() >= _TYPING_ERRORS_SHARE:
            return text
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            text = self._slip(text, self._rng.randrange(len(text) - 1))
        return " ".join(text.split())

    def _slip(self, text: str, at: int) -> str:
        """Two characters swapped, one dropped or one doubled."""
        first, second = text[at], text[at + 1]
        slips = (second + first, second, first + first + second)
        return text[:at] + self._rng.choice(slips) + text[at + 2 :]


def _invented(rng: random.Random, kind: str) -> str:
    """Personal data of nobody: test-card prefixes, reserved domains and fictional phone ranges."""

    def digits(count: int) -> str:
        return "".join(rng.choices("0123456789", k=count))

    if kind == "card":
        body = rng.choice(("411111", "555555", "400000")) + digits(9)
        number = body + luhn.calc_check_digit(body)
        return rng.choice(("", " ", "-")).join(number[i : i + 4] for i in range(0, 16, 4))
    if kind == "iban":
        body = "WEST" + digits(14)
        return str(iban.format(f"GB{iban.calc_check_digits(f'GB00{body}')}{body}"))
    if kind == "email":
        user = rng.choice(FILLERS["name"]).lower() + digits(2)
        return user + rng.choice(("@example.com", "@example.org", " (at) example.net"))
    if kind == "phone":
        areas = rng.choice(("202-555-01", "+1 415 555 01", "020 7946 09", "+44 20 7946 09"))
        return areas + digits(2)
    return rng.choice("123456789") + digits(7)


# --- The door -------------------------------------------------------------------------------------


def generate(
    rows: int, seed: int, *, label_noise_share: float = 0.02, pii_share: float = 0.04
) -> Iterator[Sample]:
    """`rows` messages, no two alike but for case and white space.

    Labels are drawn evenly, then `label_noise_share` of them are replaced by a wrong one;
    `pii_share` of the messages carry invented personal data. Neither share changes the rest of the
    stream: the same seed without noise gives the true labels of the same texts.
    """
    if rows < 0:
        raise ConfigError(f"rows is {rows}; expected 0 or more.")
    for name, share in (("label_noise_share", label_noise_share), ("pii_share", pii_share)):
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"{name} is {share}; expected a share between 0 and 1.")
    return islice(_stream(seed, label_noise_share, pii_share), rows)


def _stream(seed: int, label_noise_share: float, pii_share: float) -> Iterator[Sample]:
    labels, texts, noise, pii = (
        random.Random(f"{seed}/{use}")  # noqa: S311 - reproducible on purpose
        for use in ("labels", "texts", "noise", "pii")
    )
    writer, discloser = _Writer(texts), _Writer(pii)
    seen: set[str] = set()
    while True:
        label = labels.choice(tuple(Sentiment))
        text = _unseen(writer, label, seen)
        disclosed = discloser.personal()
        if pii.random() < pii_share:
            text = f"{text} {disclosed}"
        wrong = noise.choice([other for other in Sentiment if other is not label])
        yield Sample(text, wrong if noise.random() < label_noise_share else label)


def _unseen(writer: _Writer, label: Sentiment, seen: set[str]) -> str:
    for _ in range(_MAX_REPEATS):
        text = writer.message(label)
        key = dedup_key(text)
        if key not in seen:
            seen.add(key)
            return text
    raise ConfigError(
        f"After {len(seen)} messages the generator repeats itself. Ask for fewer rows."
    )


def write_csv(
    path: Path, rows: int, seed: int, *, label_noise_share: float = 0.02, pii_share: float = 0.04
) -> None:
    """Writes `text,label` rows, the whole file or nothing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("text", "label"))
    samples = generate(rows, seed, label_noise_share=label_noise_share, pii_share=pii_share)
    writer.writerows((sample.text, sample.label.value) for sample in samples)
    write_text(path, buffer.getvalue())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train_jobs.samples", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--label-noise-share", type=float, default=0.02)
    parser.add_argument("--pii-share", type=float, default=0.04)
    options = parser.parse_args(arguments)
    try:
        write_csv(
            options.out,
            options.rows,
            options.seed,
            label_noise_share=options.label_noise_share,
            pii_share=options.pii_share,
        )
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

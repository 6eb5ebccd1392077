#!/usr/bin/env python3
"""Collects the training text of the built-in model: pairs of a query and a text that answers it.

Everything comes from Debian's package lists and documentation packages (names, versions and licences: SOURCES below and
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
}

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

    rng = random.Random(1)
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
    versions = []
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
    for name in SOURCES:
        if name not in ("wordnet-base", "gnome-user-docs", "manpages", "manpages-dev") and not name.startswith("dict-"):
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

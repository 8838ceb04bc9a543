"""Normal requests and the texts that people write into them, from documents that packages ship."""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlencode

sys.path.insert(0, str(Path(__file__).parent.parent))
from corpus import docstrings, modules, share, sources
from packages import wheel

from torchmar.guard import as_text

HELD_OUT = 0.2

_MAX_BODY = 2048  # what torchmar.guard sends of a body
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Template:
    """A request whose values can be replaced.

    Attributes:
        method: such as ``GET``.
        path: percent-encoded.
        query: names and values, decoded.
        content_type: that of the body; None if there is none.
        body: what JSON can hold, names and values of a form, or a text.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def templates(*, held_out: bool) -> list[Template]:
    """Return requests: of the examples of AWS's services and of web applications; Plone's are all held out."""
    found = list(_aws(held_out=held_out))
    web = sorted(_web(), key=lambda template: share(template.path + template.method))
    found += [one for one in web if (share(one.path + one.method, "held out") < HELD_OUT) == held_out] * 12
    return found + list(_plone()) * 4 if held_out else found


def values(*, held_out: bool) -> list[str]:
    """Return texts of users: prose, code and lines of the standard library's docstrings, words of many languages."""
    texts: set[str] = set()
    for source in _sources(held_out=held_out):
        for name, text in docstrings(source):
            blocks = re.split(r"\n\s*\n", text)
            texts.update(block.strip()[:800] for block in blocks if len(block.strip()) > 2)
            texts.update(line.strip() for block in blocks[:2] for line in block.splitlines() if len(line.strip()) > 2)
            texts.add(name)
        texts.update(_code(source, held_out=held_out))
    texts.update(_translations(held_out=held_out))
    texts.update(_markup(held_out=held_out))
    texts.discard("")
    return sorted(texts)


def browsers() -> list[str]:
    """Return the User-Agent headers of browsers and other clients."""
    agents = wheel("dirsearch").read("dirsearch/db/user-agents.txt").decode().split("\n")[:-1]
    others = ["curl/8.5.0", "python-requests/2.32.3", "Go-http-client/2.0", "okhttp/4.12.0", "axios/1.7.2", "Wget/1.21"]
    robots = ["Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"]
    return agents + 4 * (others + robots)


def rendered(template: Template, agent: str, chance: random.Random, value: str | None = None) -> str:
    """Return a request as the text that the model gets, with ``value`` in one of its places.

    Args:
        template: the request.
        agent: its User-Agent.
        chance: which place, and how it is encoded.
        value: a text of a user or the payload of an attack; None leaves the request as it is.
    """
    if value is not None:
        template, agent = _placed(template, agent, chance, value)
    if (
        isinstance(template.body, dict | list)
        and template.content_type != _FORM
        and len(text := json.dumps(template.body)) < 500
        and chance.random() < 0.15
    ):
        # Some applications have JSON in the query, encoded once or twice.
        parameters = (*template.query, ("query", quote(text) if chance.random() < 0.3 else text))
        template = replace(template, method="GET", query=parameters, content_type=None, body=None)
    query = "&".join(f"{quote_plus(name)}={_encoded(text, chance)}" for name, text in template.query)
    target = template.path + (f"?{query}" if query else "")
    body = b""
    headers = {"User-Agent": agent}
    if template.body is not None and template.content_type:
        headers = {"Content-Type": template.content_type, **headers}
        if template.content_type == _FORM:
            body = urlencode(template.body).encode()
        elif isinstance(template.body, str):
            body = template.body.encode()
        else:
            indent = chance.choice([None, None, 2])
            body = json.dumps(template.body, indent=indent, ensure_ascii=chance.random() < 0.5).encode()
        if value is not None and len(body) > _MAX_BODY:
            # The value is in what is sent of a body.
            headers["Content-Type"], body = _JSON, json.dumps({"text": value}).encode()
    # Whatever field the value is in, it must be in the text.
    return as_text(template.method, target, headers, body[:_MAX_BODY], secret_fields=())


def _placed(template: Template, agent: str, chance: random.Random, value: str) -> tuple[Template, str]:
    """Return a request with a value in its query, its body, its path or its User-Agent."""
    places = ["query"] * 4 + ["path"]
    if template.body is not None:
        places += ["body"] * 8
    if len(value) < 120:
        places += ["path", "agent"]
    place = chance.choice(places)
    if place == "agent":
        return template, chance.choice([value, f"{agent} {value}"])
    if place == "path":
        segments = template.path.split("/")
        position = chance.randrange(1, len(segments)) if len(segments) > 1 else 0
        segments[position] = _encoded(value, chance, path=True)
        return replace(template, path="/".join(segments)), agent
    if place == "query":
        query = list(template.query) or [(chance.choice(["q", "id", "name", "page", "file", "search", "url"]), "")]
        position = chance.randrange(len(query))
        query[position] = (query[position][0], chance.choice([value, value, query[position][1] + value]))
        return replace(template, query=tuple(query)), agent
    if isinstance(template.body, str):
        return replace(template, body=value), agent
    if template.content_type == _FORM:
        form = list(template.body) or [("text", "")]
        position = chance.randrange(len(form))
        form[position] = (form[position][0], value)
        return replace(template, body=form), agent
    body = json.loads(json.dumps(template.body))
    leaves = list(_leaves(body))
    if not leaves:
        return replace(template, body={"text": value}), agent
    holder, key = chance.choice(leaves)
    holder[key] = value
    return replace(template, body=body), agent


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of every text and number in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, dict | list):
            yield from _leaves(item)
        else:
            yield value, key


def _encoded(text: str, chance: random.Random, path: bool = False) -> str:
    """Return a text percent-encoded as browsers, libraries or scanners do it."""
    way = chance.random()
    if way < 0.4:
        return quote(text, safe="") if path else quote_plus(text)
    if way < 0.7:
        return quote(text, safe="/:@!$'()*,;=~")
    # Only what would end the line or the value.
    return "".join(quote(letter) if letter in ' \t\r\n#&+%?"\0' or ord(letter) > 126 else letter for letter in text)


def _aws(*, held_out: bool) -> Iterator[Template]:
    """Yield the examples in the descriptions of AWS's services, as requests of their protocols."""
    files = wheel("botocore")
    for name in sorted(files.namelist()):
        folders = name.split("/")
        if folders[-1] != "examples-1.json" or (share(folders[2], "held out") < HELD_OUT) != held_out:
            continue
        examples = json.loads(files.read(name))["examples"]
        if not examples:
            continue
        service = json.loads(gzip.decompress(files.read(name.replace("examples-1.json", "service-2.json.gz"))))
        for operation, cases in sorted(examples.items()):
            if operation in service["operations"]:
                for case in cases[:3]:
                    yield _aws_request(service, operation, case.get("input") or {})


def _aws_request(service: dict[str, Any], operation: str, given: dict[str, Any]) -> Template:
    http = service["operations"][operation]["http"]
    protocol = service["metadata"]["protocol"]
    if protocol in ("query", "ec2"):
        version = service["metadata"]["apiVersion"]
        form = [("Action", operation), ("Version", version), *_flat("", given)]
        return Template("POST", "/", (), _FORM, form)
    if protocol == "json":
        return Template("POST", "/", (), "application/x-amz-json-1.1", given)
    shape = service["operations"][operation].get("input", {}).get("shape", "")
    members = service["shapes"].get(shape, {}).get("members", {})
    path, _, constant = http["requestUri"].partition("?")
    query = parse_qsl(constant, keep_blank_values=True)
    body: dict[str, Any] = {}
    for key, value in given.items():
        member = members.get(key, {})
        location, wire_name = member.get("location"), member.get("locationName", key)
        if location == "uri":
            path = re.sub(rf"\{{{re.escape(wire_name)}\+?\}}", quote(str(value)), path)
        elif location == "querystring":
            query += [(wire_name, str(one)) for one in (value if isinstance(value, list) else [value])]
        elif location is None:
            body[wire_name] = value
    method = http["method"]
    return Template(method, path, tuple(query), _JSON if body else None, body or None)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield names with dots and texts, as AWS's query protocol writes structures."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, item)
    elif isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield from _flat(f"{prefix}.{number}", item)
    else:
        yield prefix, str(value)


def _plone() -> Iterator[Template]:
    """Yield the requests in the documentation of Plone's REST API, without their credentials."""
    files = wheel("plone.restapi")
    for name in sorted(files.namelist()):
        if not name.endswith(".req"):
            continue
        head, _, body = files.read(name).decode().replace("\r\n", "\n").partition("\n\n")
        first, *lines = head.split("\n")
        method, target = first.split(" ")[:2]
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        path, _, query = target.partition("?")
        content: Any = body.strip() or None
        content_type = headers.get("Content-Type")
        if content and content_type == _JSON:
            try:
                content = json.loads(content)
            except ValueError:
                continue  # documentation with an ellipsis
        elif content and content_type == _FORM:
            content = parse_qsl(content, keep_blank_values=True)
        yield Template(method, path, tuple(parse_qsl(query, keep_blank_values=True)), content_type, content)


def _web() -> Iterator[Template]:
    """Yield requests as the applications and frameworks that most people run get them."""
    pages = [
        "/", "/index.html", "/about", "/robots.txt", "/favicon.ico", "/sitemap.xml", "/blog/", "/en/docs/intro.html",
        "/blog/2026/11/29/how-we-moved-to-python-3/", "/wiki/Main_Page", "/users/4711/orders/2026-000123",
        "/static/css/main.3f2a9c.css", "/static/js/app.min.js", "/media/photos/img_0001.jpg", "/fonts/inter.woff2",
        "/admin/", "/admin/auth/user/17/change/", "/accounts/login/", "/.well-known/security.txt", "/health",
        "/api/v1/users/7f9c24e8-3b12-4fef-91e5-0c1b2f7d9a10", "/api/v2/projects/12/issues", "/graphql", "/feed.xml",
    ]  # fmt: skip
    for page in pages:
        yield Template("GET", page)
    queries = {
        "/search": "q=guide&page=2&sort=-date",
        "/": "utm_source=newsletter&utm_medium=email&utm_campaign=autumn_sale&fbclid=IwAR1b2c3d4e5f6",
        "/admin/auth/user/": "q=ada&is_staff__exact=1&o=-3.1&p=4",
        "/products": "category=shoes&price_min=20&price_max=79.90&size[]=41&size[]=42&color=red,blue",
        "/w/index.php": "title=Special:Search&search=history&fulltext=1&ns0=1",
        "/index.php": "option=com_content&view=article&id=42:about-us&Itemid=101",
        "/wp-admin/admin-ajax.php": "action=heartbeat&_wpnonce=5f0c1d2e3a",
        "/api/v1/events": "from=2026-11-01T00:00:00Z&to=2026-11-29T23:59:59%2B01:00&limit=50&fields=id,venue(name)",
        "/api/items": "filter={\"status\":\"open\",\"owner\":{\"$in\":[1,2]}}&expand=owner.team",
        "/oauth/authorize": "response_type=code&client_id=web&redirect_uri=https://example.com/cb&scope=openid profile",
        "/download": "file=reports/2026/q3-summary.pdf&inline=1",
        "/static/app.js": "v=1.2.3-rc.1+build.5",
        "/translate": "sl=en&tl=fr&text=It's raining; let's stay in & drink \"tea\" (or coffee).",
        "/reset": "email=ada@example.com&token=***&next=/",
        "/calculator": "expr=(3+4)*2-10/5",
        "/redirect": "url=https://example.com/path?a=1&b=2#top",
        "/odata/Orders": "$filter=Total gt 100 and Status eq 'Open'&$select=Id,Total&$orderby=Total desc&$top=20",
        "/_search": "q=title:(python OR django) AND year:[2020 TO 2026] -draft",
    }  # fmt: skip
    for path, query in queries.items():
        for method in ("GET", "GET", "HEAD"):
            yield Template(method, path, tuple(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)))
    forms: dict[str, dict[str, str]] = {
        "/accounts/login/": {"username": "ada", "password": "***", "next": "/dashboard/?tab=1"},
        "/account/password": {"old_password": "***", "new_password": "***", "email": "ada@example.com"},
        "/contact": {"name": "Seán O'Brien", "email": "sean.o'brien@example.ie", "subject": "Hello", "message": "Hi!"},
        "/comments": {"post": "42", "author": "D'Angelo", "text": "I agree -- mostly; see section 3."},
        "/checkout": {"card_holder": "J. Doe", "street": "5 rue de l'Église", "zip": "75001", "country": "FR"},
        "/admin/blog/post/add/": {
            "title": "Post",
            "slug": "post",
            "body": "<p>Text</p>",
            "tags": "a, b",
            "_save": "Save",
        },
        "/editor/preview": {"source": "# Title\n\nSome *text* with `code` and <b>HTML</b>."},
        "/sql/format": {"text": "select name from users where id = 3 order by name"},
    }
    for path, form in forms.items():
        for _ in range(3):
            yield Template("POST", path, (), _FORM, list(form.items()))
    documents: dict[str, Any] = {
        "/api/v1/users": {"name": "Ada Lovelace", "email": "ada@example.com", "roles": ["editor"], "active": True},
        "/api/v1/sessions": {"email": "ada@example.com", "password": "***", "remember": True},
        "/oauth/token": {"grant_type": "refresh_token", "client_id": "web", "refresh_token": "***"},
        "/api/v1/posts": {"title": "News", "body": "It's here: the new release!", "tags": ["a", "b"], "draft": False},
        "/graphql": {"query": "query Posts($first: Int!) { posts(first: $first) { id title author { name } } }",
                     "variables": {"first": 10}},
        "/api/search": {"query": "cheap flights", "filters": {"price": {"lt": 200}}, "sort": [{"field": "price"}]},
        "/v1/models/digits:predict": {"instances": [[0.1, 0.5], [1.5, 2.25]]},
        "/api/orders": {"items": [{"sku": "A-1", "count": 2, "note": ""}], "coupon": None, "total": 19.99},
        "/api/notes": {"content": "for (i = 0; i < 10; i++) { print(i); }", "language": "c"},
    }  # fmt: skip
    for path, document in documents.items():
        for method in ("POST", "PUT", "PATCH"):
            yield Template(method, path, (), _JSON, document)


def _sources(*, held_out: bool) -> Iterator[str]:
    """Yield source of Python: of the standard library, and of Django, whose database layer has much SQL."""
    for module in modules():
        if (share(module, "held out") < HELD_OUT) == held_out:
            yield from sources(module)
    files = wheel("django")
    for name in sorted(files.namelist()):
        if name.endswith(".py") and "/locale/" not in name and (share(name, "held out") < HELD_OUT) == held_out:
            yield files.read(name).decode()


def _code(source: str, *, held_out: bool) -> Iterator[str]:
    """Yield pieces of a program, as people send them to each other: some lines in a row."""
    lines = source.splitlines()
    for start in range(0, len(lines), 8):
        piece = "\n".join(lines[start : start + 1 + start % 7]).strip()
        if len(piece) > 10 and share(piece, "kept") < (0.05 if held_out else 0.1):
            yield piece[:400]


def _translations(*, held_out: bool) -> Iterator[str]:
    """Yield the texts of Django's interface, in its languages."""
    files = wheel("django")
    for name in sorted(files.namelist()):
        match = re.fullmatch(r"django/(?:contrib/admin|conf|contrib/auth).*/locale/(\w+)/LC_MESSAGES/django\.po", name)
        if not match or (share(match.group(1), "held out") < HELD_OUT) != held_out:
            continue
        for text in re.findall(r'^msgstr "(.+)"$', files.read(name).decode(), re.M):
            if share(text, "kept") < 0.08:
                yield text.replace('\\"', '"').replace("\\n", "\n")


def _markup(*, held_out: bool) -> Iterator[str]:
    """Yield pieces of HTML without scripts, as editors send them: of the templates of Django's pages."""
    files = wheel("django")
    for name in sorted(files.namelist()):
        if not name.endswith(".html") or (share(name, "held out") < HELD_OUT) != held_out:
            continue
        text = re.sub(r"\{[{%#].*?[}%#]\}", "", files.read(name).decode(), flags=re.S)
        text = re.sub(r"<script.*?</script>|\bon\w+=\"[^\"]*\"", "", text, flags=re.S)
        for piece in re.split(r"\n\s*\n", text):
            if "<" in piece and 10 < len(piece.strip()) < 800:
                yield piece.strip()

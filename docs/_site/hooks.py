"""What MkDocs asks while it builds the site: generated pages, drawings, the notebook."""

import base64
import binascii
import json
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs._site import options  # noqa: E402

MARK = re.compile(r"<!-- (options of|recipes)(?:: (.*?))? -->")
DRAWING = re.compile(r'<img alt="([^"]*)" src="(?:\.\./)*images/(method-[\w-]+\.svg)"[^>]*>')
NOTEBOOK_LINK = re.compile(r"(?<=\w)\.ipynb(?=[)#])")
IMAGE = {"image/png": ".png", "image/jpeg": ".jpg"}


def on_files(files: Any, *, config: Any) -> Any:
    """Notebooks become pages: their text, code and outputs, as they are in the file."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = notebook_as_markdown(json.loads(notebook.content_string))
        page = notebook.src_uri.removesuffix(".ipynb")
        text = text.replace("PICTURES", page.rpartition("/")[2])
        text = text.replace(
            "\n\n", f"\n\nThe notebook `docs/{notebook.src_uri}`, as it ran.\n\n", 1
        )
        files.append(File.generated(config, f"{page}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"{page}-{name}", content=data))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Generated parts take the place of their marks; links to notebooks lead to their pages."""
    markdown = NOTEBOOK_LINK.sub(".md", markdown)
    if not MARK.search(markdown):
        return markdown
    markdown = MARK.sub(lambda mark: _made(mark[1], mark[2] or ""), markdown)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\bdocs/([\w-]+)\.md\b", rf"[\1]({up}\1.md)", markdown)


def _made(kind: str, names: str) -> str:
    if kind == "recipes":
        return options.recipes_as_markdown()
    chosen = options.chosen(names)
    return "\n\n".join(options.as_markdown(verb, like) for verb, like in chosen)


def on_page_content(html: str, **_: Any) -> str:
    """Drawings stand in the page itself, where they take the colours of its scheme."""

    def inlined(found: re.Match) -> str:
        return (ROOT / "docs/images" / found[2]).read_text("utf-8")

    return DRAWING.sub(inlined, html)


def notebook_as_markdown(notebook: dict) -> tuple[str, dict[str, bytes]]:
    """A notebook's page, and its pictures by name (`PICTURES-` stands before it in the page)."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        shell = text.removeprefix("%%bash\n") if text.startswith("%%bash\n") else ""
        parts.append(f"```bash\n{shell}\n```" if shell else f"```python\n{text}\n```")
        for output in cell["outputs"]:
            parts += _output(output, pictures)
    return "\n\n".join(parts) + "\n", pictures


def _output(output: dict, pictures: dict[str, bytes]) -> list[str]:
    """A cell's output: printed text, or a picture, or how a value is shown."""
    if output["output_type"] == "stream":
        return [_said("".join(output["text"]))]
    data = output.get("data", {})
    for kind, suffix in IMAGE.items():
        if kind in data:
            content = base64.b64decode("".join(data[kind]))
            name = f"{binascii.crc32(content):08x}{suffix}"
            pictures[name] = content
            return [f"![output](PICTURES-{name})"]
    return [_said("".join(data["text/plain"]))] if "text/plain" in data else []


def _said(text: str) -> str:
    return f"```{{.text .output}}\n{text.rstrip()}\n```"

"""Fill a site's names into the manifests: deploy/*.yaml and deploy/site.env in, dist/deploy/*.yaml out.

cp deploy/site.env.example deploy/site.env    # fill it in
python deploy/fill.py eks                     # or gke
"""

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OUTPUT = FOLDER.parent / "dist" / "deploy"
CLOUDS = ("eks", "gke")
UNUSED = {"eks": {"GCP_PROJECT"}, "gke": {"REGION"}}


def read_site(path: Path) -> dict[str, str]:
    """NAME=value lines; comments and empty lines are skipped."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines if line and line[0] != "#")}


def fill(text: str, values: dict[str, str]) -> str:
    """Every name of ``values`` in the text, whole words only, replaced by its value."""
    return re.sub(r"\b[A-Z][A-Z_]+\b", lambda found: values.get(found[0], found[0]), text)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in CLOUDS:
        print(f"usage: python deploy/fill.py {'|'.join(CLOUDS)}", file=sys.stderr)
        return 2
    site = FOLDER / "site.env"
    if not site.is_file():
        print(f"{site} is missing: copy {site}.example and fill it in", file=sys.stderr)
        return 2
    names, values = read_site(Path(f"{site}.example")), read_site(site)
    if empty := [name for name in names if not values.get(name) and name not in UNUSED[arguments[0]]]:
        print(f"{site}: no value for {', '.join(empty)}; {site.name}.example says what each is", file=sys.stderr)
        return 2
    if unknown := sorted(values.keys() - names.keys()):
        print(f"{site}: unknown {', '.join(unknown)}; allowed are {', '.join(names)}", file=sys.stderr)
        return 2
    OUTPUT.mkdir(parents=True, exist_ok=True)
    others = {f"flyte-{cloud}.yaml" for cloud in CLOUDS if cloud != arguments[0]}
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name not in others:
            (OUTPUT / path.name).write_text(fill(path.read_text(encoding="utf-8"), values), encoding="utf-8")
    print(f"{OUTPUT}: {', '.join(path.name for path in sorted(OUTPUT.glob('*.yaml')))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

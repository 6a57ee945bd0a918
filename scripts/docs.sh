#!/usr/bin/env bash
# The documentation as a site in build/site; a link or a name that leads nowhere is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh -e ".[docs]"
export NO_MKDOCS_2_WARNING=1 # the theme's notice of its successor
"$py" -m mkdocs build --quiet
echo "build/site/index.html"

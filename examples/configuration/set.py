"""Sets configuration items, or removes them: `set.py greeting=Ahoy pause=`."""

import os
import sys
import urllib.request
from urllib.parse import quote

STORE = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/mesh/v1/configuration/configstore"

for word in sys.argv[1:]:
    key, _, value = word.partition("=")
    body, method = (value.encode(), "PUT") if value else (None, "DELETE")
    request = urllib.request.Request(f"{STORE}/{quote(key, safe='')}", body, method=method)
    urllib.request.urlopen(request, timeout=10).close()
    print(f"{key} is set" if value else f"{key} is removed", flush=True)

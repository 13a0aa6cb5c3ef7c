"""Posts an opened issue as GitHub does: signed with the webhook's secret. `post.py NUMBER TITLE [PORT]`."""

import hashlib
import hmac
import json
import os
import sys
import uuid
from urllib.error import HTTPError
from urllib.request import Request, urlopen

number, title = int(sys.argv[1]), sys.argv[2]
port = sys.argv[3] if len(sys.argv) > 3 else "8090"
issue = {"id": 90000 + number, "number": number, "title": title, "labels": [{"name": "order"}]}
body = json.dumps({"action": "opened", "issue": issue}).encode()
signature = hmac.new(os.environ["GITHUB_WEBHOOK_SECRET"].encode(), body, hashlib.sha256).hexdigest()
headers = {
    "content-type": "application/json",
    "X-GitHub-Event": "issues",
    "X-GitHub-Delivery": str(uuid.uuid4()),
    "X-Hub-Signature-256": f"sha256={signature}",
}
try:
    with urlopen(Request(f"http://127.0.0.1:{port}/", body, headers), timeout=10) as answer:
        print(answer.status)
except HTTPError as error:
    sys.exit(f"{error.code}: {error.read().decode()}")

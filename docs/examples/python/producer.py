#!/usr/bin/env python3
"""Submits one event and prints Fairhook's answer. Python 3.9 or later, no packages.

    FAIRHOOK_URL=http://localhost:8080 FAIRHOOK_KEY=... \
        python3 producer.py TENANT TYPE PAYLOAD [IDEMPOTENCY_KEY]
"""

import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import uuid

TRIES = 6
LONGEST_WAIT = 30  # seconds


def submit(url, api_key, tenant, type, payload, key=None):
    """Hands an event over and returns Fairhook's answer, decoded.

    payload is the text of one JSON value: the receivers get its bytes as they are. When
    this returns, the event is committed.

    Every try has the same idempotency key, so that it stays one event. Keep the key
    with the event to be able to submit it again after a crash.
    """
    json.loads(payload)  # what is not one JSON value would break the body around it
    body = '{"tenant":%s,"type":%s,"payload":%s}' % (json.dumps(tenant), json.dumps(type), payload)
    request = urllib.request.Request(
        url + "/v1/events",
        data=body.encode(),
        method="POST",
        headers={
            "Authorization": "Bearer " + api_key,
            "Content-Type": "application/json",
            "Idempotency-Key": key or str(uuid.uuid4()),
        },
    )
    failure, asked = None, 0
    for tries in range(TRIES):
        if tries > 0:
            # What the server asks for, or else twice as long each time, less up to a
            # half at random.
            backoff = 0.25 * 2 ** (tries - 1) * (1 - random.random() / 2)
            time.sleep(min(max(backoff, asked), LONGEST_WAIT))
        asked = 0
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            failure = RuntimeError("%d: %s" % (error.code, error.read().decode(errors="replace")))
            # 409: another request with the same key is under way.
            if error.code not in (409, 429, 502, 503, 504):
                break
            after = error.headers.get("Retry-After", "")
            asked = int(after) if after.isdigit() else 0
        except (OSError, http.client.HTTPException) as error:
            failure = error  # no connection, a broken one, or no answer in time
    raise failure


if __name__ == "__main__":
    answer = submit(os.environ["FAIRHOOK_URL"], os.environ["FAIRHOOK_KEY"], *sys.argv[1:])
    print(json.dumps(answer))

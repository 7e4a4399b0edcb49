#!/usr/bin/env python3
"""Receives webhooks: verifies them (Standard Webhooks, v1) and handles each once.
Python 3.9 or later, no packages.

    WEBHOOK_SECRET=whsec_... PORT=3000 python3 receiver.py

While a secret is being rotated WEBHOOK_SECRET has both, with a space between.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import re
import sys
import threading
import time

TOLERANCE = 5 * 60  # seconds, in the past and in the future
MAX_BODY = 1 << 20  # bytes
LEASE = 60  # seconds that handling may take
KEEP = 4 * 24 * 60 * 60  # seconds that a handled message is remembered
MAX_REMEMBERED = 100_000  # messages


def handle(message_id, event_type, body):
    """Does the work for one message. If it raises, the sender comes again."""
    data = json.loads(body)
    print("handled", message_id, event_type, json.dumps(data), flush=True)


def read_keys(text):
    """The keys of secrets that are separated by spaces."""
    keys = []
    for secret in text.split():
        encoded = secret[len("whsec_"):] if secret.startswith("whsec_") else secret
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        if len(key) < 24:
            raise ValueError("a secret is too short")
        keys.append(key)
    if not keys:
        raise ValueError("there is no secret")
    return keys


def verify(keys, headers, body):
    """0 if the body was signed by the sender, or else the status to answer."""
    message_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    signatures = headers.get("webhook-signature", "")
    # A dot separates what is signed, so none may be in an id.
    if (
        not re.fullmatch(r"[^.]{1,256}", message_id)
        or not re.fullmatch(r"0|[1-9][0-9]{0,11}", timestamp)
        or not signatures
    ):
        return 400
    if abs(time.time() - int(timestamp)) > TOLERANCE:
        return 401
    matched = False
    for key in keys:
        # Headers arrive decoded as latin-1: so encoded, they are the bytes again.
        content = ("%s.%s." % (message_id, timestamp)).encode("latin-1") + body
        want = b"v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest())
        for entry in signatures.split(" ")[:16]:
            matched = hmac.compare_digest(entry.encode("latin-1"), want) or matched
    return 0 if matched else 401


class Seen:
    """The messages that are being handled and those that were, the ones handled longest
    ago first. Several copies of a receiver need a store that they share."""

    def __init__(self):
        self.lock = threading.Lock()
        self.entries = {}  # id -> [handled, until]

    def claim(self, message_id):
        """Takes a message. Returns the claim and None, or None and whether it was
        handled already."""
        now = time.monotonic()
        with self.lock:
            surplus = []
            for old, (handled, until) in self.entries.items():
                if until <= now or handled and len(self.entries) - len(surplus) >= MAX_REMEMBERED:
                    surplus.append(old)
                elif handled:
                    break  # those after it are younger
            for old in surplus:
                del self.entries[old]
            known = self.entries.get(message_id)
            if known and known[1] > now:
                return None, known[0]
            mine = [False, now + LEASE]
            self.entries[message_id] = mine
            return mine, None

    def commit(self, message_id):
        with self.lock:
            self.entries.pop(message_id, None)  # and at the end of the order again
            self.entries[message_id] = [True, time.monotonic() + KEEP]

    def release(self, message_id, mine):
        with self.lock:
            if self.entries.get(message_id) is mine:
                del self.entries[message_id]


class Receiver(http.server.BaseHTTPRequestHandler):
    keys = []
    seen = Seen()
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds for a request to arrive

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", length):
            return self.answer(411, close=True)
        if int(length) > MAX_BODY:
            return self.answer(413, close=True)  # what was not read is still to come
        body = self.rfile.read(int(length))  # the bytes that were signed: parse them only afterwards
        if len(body) < int(length):
            return self.answer(400, close=True)
        refused = verify(self.keys, self.headers, body)
        if refused:
            return self.answer(refused)
        message_id = self.headers["webhook-id"]
        mine, handled = self.seen.claim(message_id)
        if mine is None:
            return self.answer(204 if handled else 503)  # 503: the sender may come again later
        try:
            handle(message_id, self.headers.get("fairhook-event-type"), body)
        except Exception as error:
            print("message %s: %r" % (message_id, error), file=sys.stderr, flush=True)
            self.seen.release(message_id, mine)  # when it comes again, it is handled again
            return self.answer(500)
        self.seen.commit(message_id)
        return self.answer(204)

    def answer(self, status, close=False):
        self.send_response(status)  # and not a word about why
        if status != 204:
            self.send_header("Content-Length", "0")
        if status == 503:
            self.send_header("Retry-After", "5")
        if close:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format, *args):
        pass  # no line for each request


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    try:
        Receiver.keys = read_keys(os.environ.get("WEBHOOK_SECRET", ""))
    except ValueError:
        sys.exit("WEBHOOK_SECRET must have the webhook's secret")
    server = Server(("127.0.0.1", int(os.environ.get("PORT", "3000"))), Receiver)
    print("listening on http://127.0.0.1:%d" % server.server_port, flush=True)
    server.serve_forever()

#!/usr/bin/env python3
"""Reads webhooks out of Svix or Convoy, for "fairhook import". Python 3.9 or later, no
packages. It only reads, and writes JSON to standard output:

    umask 077   # the file has secrets
    SVIX_TOKEN=... python3 collect.py svix > svix.json
    CONVOY_API_KEY=... CONVOY_URL=https://convoy.example.com/api \
        python3 collect.py convoy PROJECT_ID... > convoy.json

SVIX_URL is https://api.svix.com if not set, and CONVOY_URL
https://us.getconvoy.cloud/api. Both are those of your own server if you run one.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

TRIES = 6


class API:
    def __init__(self, base, token):
        self.base, self.token = base.rstrip("/"), token

    def get(self, path, missing=None, **query):
        """The answer to a GET, decoded; missing if it is a 404 and missing is given."""
        url = self.base + path
        if query:
            url += "?" + urllib.parse.urlencode(query)
        request = urllib.request.Request(
            url, headers={"Authorization": "Bearer " + self.token, "Accept": "application/json"}
        )
        for tries in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code == 404 and missing is not None:
                    return missing
                if error.code not in (429, 502, 503, 504) or tries == TRIES - 1:
                    raise SystemExit("GET %s: %d" % (path, error.code))
            except OSError as error:
                if tries == TRIES - 1:
                    raise SystemExit("GET %s: %s" % (path, error))
            time.sleep(0.25 * 2**tries)


def part(text):
    """Makes an id a part of a path."""
    return urllib.parse.quote(text, safe="")


def svix(api):
    def everything(path):
        iterator = None
        while True:
            page = api.get(path, limit=250, **({"iterator": iterator} if iterator else {}))
            yield from page["data"]
            iterator = page.get("iterator")
            if page.get("done", True) or not iterator:
                return

    applications = []
    for application in everything("/api/v1/app"):
        at = "/api/v1/app/%s/endpoint" % part(application["id"])
        endpoints = []
        for endpoint in everything(at):
            one = "%s/%s" % (at, part(endpoint["id"]))
            endpoints.append(
                {
                    "endpoint": endpoint,
                    "secret": api.get(one + "/secret"),
                    "headers": api.get(one + "/headers"),
                    # A Svix server of your own does not know these.
                    "transformation": api.get(one + "/transformation", missing={}),
                    "oauth": api.get(one + "/oauth-config", missing={}),
                    "mtls": api.get(one + "/mtls-config", missing={}),
                }
            )
        applications.append({"application": application, "endpoints": endpoints})
    return {"source": "svix", "applications": applications}


def convoy(api, project_ids):
    def everything(path):
        cursor = None
        while True:
            query = {"perPage": 100, "direction": "next"}
            if cursor:
                query["next_page_cursor"] = cursor
            page = api.get(path, **query)["data"]
            yield from page.get("content") or []
            pagination = page.get("pagination") or {}
            if not pagination.get("has_next_page"):
                return
            cursor = pagination["next_page_cursor"]

    projects = []
    for project_id in project_ids:
        at = "/v1/projects/" + part(project_id)
        subscriptions = list(everything(at + "/subscriptions"))
        for subscription in subscriptions:
            filters = api.get("%s/subscriptions/%s/filters" % (at, part(subscription["uid"])), missing={})
            subscription["filters"] = filters.get("data") or []
        projects.append(
            {
                "project": api.get(at)["data"],
                "endpoints": list(everything(at + "/endpoints")),
                "subscriptions": subscriptions,
            }
        )
    return {"source": "convoy", "projects": projects}


def main(arguments):
    environment = os.environ.get
    if arguments == ["svix"]:
        api = API(environment("SVIX_URL", "https://api.svix.com"), os.environ["SVIX_TOKEN"])
        collected = svix(api)
    elif arguments[:1] == ["convoy"] and len(arguments) > 1:
        api = API(environment("CONVOY_URL", "https://us.getconvoy.cloud/api"), os.environ["CONVOY_API_KEY"])
        collected = convoy(api, arguments[1:])
    else:
        raise SystemExit(__doc__)
    json.dump(collected, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main(sys.argv[1:])

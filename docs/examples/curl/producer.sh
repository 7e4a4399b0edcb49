#!/bin/sh
# Submits one event with curl and prints Fairhook's answer, or curl's error.
#
#   FAIRHOOK_URL=http://localhost:8080 FAIRHOOK_KEY=... \
#     ./producer.sh TENANT TYPE PAYLOAD [IDEMPOTENCY_KEY]
#
# PAYLOAD is one JSON value; the receivers get its bytes as they are here. Keep the
# idempotency key with the event, so that it can be submitted again after a crash
# without becoming two.
set -eu

tenant=$1 type=$2 payload=$3
key=${4:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}

case $tenant$type in
*[\"\\]*)
	echo "the tenant and the type must need no escapes in JSON" >&2
	exit 2
	;;
esac

# --retry repeats what may pass: no connection, timeouts, 408, 429, 500, 502, 503 and
# 504, and waits as long as Retry-After says. The key makes that safe.
printf '{"tenant":"%s","type":"%s","payload":%s}' "$tenant" "$type" "$payload" |
	curl --silent --show-error --fail-with-body \
		--max-time 30 --retry 5 --retry-connrefused --retry-max-time 120 \
		--header "Authorization: Bearer $FAIRHOOK_KEY" \
		--header 'Content-Type: application/json' \
		--header "Idempotency-Key: $key" \
		--data-binary @- "$FAIRHOOK_URL/v1/events"
echo

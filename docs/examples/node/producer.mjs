// Submits one event and prints Fairhook's answer. Node 18 or later, no packages.
//
//   FAIRHOOK_URL=http://localhost:8080 FAIRHOOK_KEY=... \
//     node producer.mjs TENANT TYPE PAYLOAD [IDEMPOTENCY_KEY]
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

const TRIES = 6
const LONGEST_WAIT = 30_000 // ms

// submit hands an event over. payload is the text of one JSON value: the receivers get
// its bytes as they are. When the promise is fulfilled, the event is committed.
//
// Every try has the same idempotency key, so that it stays one event. Keep the key with
// the event to be able to submit it again after a crash.
export async function submit({ url, apiKey, tenant, type, payload, key = randomUUID() }) {
  JSON.parse(payload) // what is not one JSON value would break the body around it
  const body = `{"tenant":${JSON.stringify(tenant)},"type":${JSON.stringify(type)},"payload":${payload}}`
  let failure
  for (let tries = 0; tries < TRIES; tries++) {
    if (tries > 0) await sleep(wait(tries, failure))
    let response, text
    try {
      response = await fetch(`${url}/v1/events`, {
        method: 'POST',
        headers: {
          authorization: `Bearer ${apiKey}`,
          'content-type': 'application/json',
          'idempotency-key': key,
        },
        body,
        redirect: 'error',
        signal: AbortSignal.timeout(30_000),
      })
      text = await response.text()
    } catch (error) {
      failure = error // no connection, a broken one, or no answer in time
      continue
    }
    if (response.ok) return JSON.parse(text)
    failure = new Error(`${response.status}: ${text}`)
    failure.retryAfter = Number(response.headers.get('retry-after')) || 0
    // 409: another request with the same key is under way.
    if (![409, 429, 502, 503, 504].includes(response.status)) break
  }
  throw failure
}

// wait is how long to wait before a try, in ms: what the server asks for, or else twice
// as long each time, less up to a half at random.
function wait(tries, failure) {
  const backoff = 250 * 2 ** (tries - 1) * (1 - Math.random() / 2)
  return Math.min(Math.max(backoff, (failure.retryAfter ?? 0) * 1000), LONGEST_WAIT)
}

const [tenant, type, payload, key] = process.argv.slice(2)
const { FAIRHOOK_URL: url, FAIRHOOK_KEY: apiKey } = process.env
console.log(JSON.stringify(await submit({ url, apiKey, tenant, type, payload, key })))

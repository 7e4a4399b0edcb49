// Receives webhooks: verifies them (Standard Webhooks, v1) and handles each once.
// Node 18 or later, no packages.
//
//   WEBHOOK_SECRET=whsec_... PORT=3000 node receiver.mjs
//
// While a secret is being rotated WEBHOOK_SECRET has both, with a space between.
import { createHmac, timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:http'

const TOLERANCE = 5 * 60 // seconds, in the past and in the future
const MAX_BODY = 1 << 20 // bytes
const LEASE = 60_000 // ms that handling may take
const KEEP = 4 * 24 * 60 * 60_000 // ms that a handled message is remembered
const MAX_REMEMBERED = 100_000 // messages

const keys = (process.env.WEBHOOK_SECRET ?? '').split(' ').filter(Boolean)
  .map((secret) => Buffer.from(secret.replace(/^whsec_/, ''), 'base64'))
if (keys.length === 0 || keys.some((key) => key.length < 24)) {
  console.error('WEBHOOK_SECRET must have the webhook\'s secret')
  process.exit(2)
}

// handle does the work for one message. If it throws, the sender comes again.
async function handle(message) {
  const data = JSON.parse(message.body)
  console.log(`handled ${message.id} ${message.type} ${JSON.stringify(data)}`)
}

// verify returns 0 if the body was signed by the sender, or else the status to answer.
function verify(headers, body) {
  const id = headers['webhook-id'] ?? ''
  const timestamp = headers['webhook-timestamp'] ?? ''
  const signatures = headers['webhook-signature'] ?? ''
  // A dot separates what is signed, so none may be in an id.
  if (!/^[^.]{1,256}$/.test(id) || !/^(0|[1-9]\d{0,11})$/.test(timestamp) || !signatures) return 400
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE) return 401
  let matched = false
  for (const key of keys) {
    const want = Buffer.from(createHmac('sha256', key).update(`${id}.${timestamp}.`).update(body).digest('base64'))
    for (const entry of signatures.split(' ').slice(0, 16)) {
      const got = Buffer.from(entry.startsWith('v1,') ? entry.slice(3) : '')
      matched = (got.length === want.length && timingSafeEqual(got, want)) || matched
    }
  }
  return matched ? 0 : 401
}

// seen has the messages that are being handled and those that were, the ones handled
// longest ago first. Several copies of a receiver need a store that they share.
const seen = new Map() // id -> {handled, until}

// claim takes a message, unless it is or was handled: then it says so.
function claim(id) {
  const now = Date.now()
  for (const [old, entry] of seen) {
    if (entry.until <= now) seen.delete(old)
    else if (entry.handled && seen.size >= MAX_REMEMBERED) seen.delete(old)
    else if (entry.handled) break // those after it are younger
  }
  const known = seen.get(id)
  if (known && known.until > now) return known
  const mine = { handled: false, until: now + LEASE }
  seen.set(id, mine)
  return { mine }
}

// bodyOf reads a request's body: the bytes that were signed. Parse them only afterwards.
async function bodyOf(request) {
  const chunks = []
  for await (const chunk of request) chunks.push(chunk)
  return Buffer.concat(chunks)
}

// receive returns the status to answer.
async function receive(request) {
  if (request.method !== 'POST') return 405
  const length = request.headers['content-length']
  if (length === undefined) return 411
  if (Number(length) > MAX_BODY) return 413
  const body = await bodyOf(request)
  const refused = verify(request.headers, body)
  if (refused) return refused
  const id = request.headers['webhook-id']
  const { mine, handled } = claim(id)
  if (!mine) return handled ? 204 : 503 // 503: the sender may come again later
  try {
    await handle({ id, type: request.headers['fairhook-event-type'], body })
  } catch (error) {
    console.error(`message ${id}:`, error)
    if (seen.get(id) === mine) seen.delete(id) // when it comes again, it is handled again
    return 500
  }
  seen.delete(id) // and at the end of the order again
  seen.set(id, { handled: true, until: Date.now() + KEEP })
  return 204
}

const server = createServer(async (request, response) => {
  let status = 400 // of a request that breaks off
  try {
    status = await receive(request)
  } catch (error) {
    console.error('a request broke off:', error.message)
  }
  if (status === 503) response.setHeader('Retry-After', '5')
  if (status === 405) response.setHeader('Allow', 'POST')
  if (status === 411 || status === 413) response.setHeader('Connection', 'close')
  response.writeHead(status).end() // and not a word about why
})
server.requestTimeout = 30_000
server.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`)
})

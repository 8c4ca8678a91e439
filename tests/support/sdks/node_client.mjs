// One of the official Node SDKs, used as a back end uses it: `node_client.mjs segment|rudder`. Environment: see python_client.py.
import { setTimeout as pause } from 'node:timers/promises'

const { HOST, WRITE_KEY, PREFIX } = process.env
const users = Number(process.env.USERS), events = Number(process.env.EVENTS), seconds = Number(process.env.SECONDS)
let failed = 0

async function segment() {
  const { Analytics } = await import('@segment/analytics-node')
  const sdk = new Analytics({ writeKey: WRITE_KEY, host: HOST, maxRetries: 50, flushAt: 50, flushInterval: 500 })
  sdk.on('error', error => { failed++; console.error(error.reason) })
  return { sdk, end: () => sdk.closeAndFlush({ timeout: 300_000 }) }
}

async function rudder() {
  const { default: Analytics } = await import('@rudderstack/rudder-sdk-node')
  const options = { dataPlaneUrl: HOST, flushAt: 50, flushInterval: 200, retryCount: 30, maxInternalQueueSize: 100_000, logLevel: 'error' }
  let waiting = 0
  options.errorHandler = error => console.error(error.message)
  const sdk = new Analytics(WRITE_KEY, options)
  const told = error => { waiting--; if (error) failed++ }
  for (const call of ['identify', 'group', 'alias', 'page', 'screen', 'track']) {
    const plain = sdk[call].bind(sdk)
    sdk[call] = message => { waiting++; plain(message, told) }
  }
  const end = async () => { while (waiting) { await sdk.flush(); await pause(1) } }
  return { sdk, end }
}

const { sdk, end } = await { segment, rudder }[process.argv[2]]()
for (let n = 0; n < users; n++) {
  const userId = `${PREFIX}${n}`
  sdk.identify({ userId, traits: { plan: 'free' } })
  sdk.group({ userId, groupId: 'g-1', traits: { name: 'one' } })
  sdk.alias({ previousId: `${userId}-before`, userId })
  sdk.page({ userId, category: 'Docs', name: 'Start' })
  sdk.screen({ userId, name: 'Start' })
}
for (let k = 0; k < events; k++) {
  for (let n = 0; n < users; n++) sdk.track({ userId: `${PREFIX}${n}`, event: 'City Searched', properties: { city: 'Dallas, TX' } })
  await pause(seconds * 1000 / events)
}
await end()
console.log(failed)

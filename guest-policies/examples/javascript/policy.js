// parcels: what went wrong, and whether to try again. The contract, with every field explained, is in wit/ and types/.

/**
 * @import { Attempt, BreakerSignal, Class, Description, Header, Outcome, Verdict } from 'triage:policy/types@0.1.0'
 */

/**
 * Says what the policy is.
 * @returns {Description}
 */
export function describe() {
  return {
    name: 'parcels',
    version: '0.1.0',
    endpoints: [{
      name: 'any',
      method: '*',
      path: '/{*rest}',
      // What it may do: the host takes the stricter of this and the method's own.
      effect: 'safe',
      // All that `decide` sees of an answer besides its status.
      interest: {
        path: false,
        requestHeaders: [],
        requestBodyBytes: 0,
        responseHeaders: ['retry-after', 'retry-after-ms', 'x-ms-retry-after-ms', 'x-should-retry', 'stripe-should-retry'],
        responseBodyBytes: 200,
      },
      settled: [],
      defaults: { limits: [] },
    }],
  };
}

/**
 * Takes the table `policy_settings` of the configuration, as JSON; a text that it throws refuses the policy.
 * @param {string} settings
 */
export function configure(settings) {
  try {
    JSON.parse(settings);
  } catch (error) {
    throw error.message;
  }
}

/**
 * Judges the outcome of one attempt.
 * @param {Attempt} attempt
 * @param {Outcome} outcome
 * @returns {Verdict}
 */
export function decide(attempt, outcome) {
  if (outcome.tag === 'failure') {
    if (!outcome.val.sent) return retry('not-applied', 'failure', WAIT_MS, 'nothing was sent');
    return inDoubt(attempt, WAIT_MS);
  }
  const { status, headers, body } = outcome.val;
  const asked = askedMs(headers, attempt.nowUnixMs);
  return hinted(judge(attempt, status, body, asked), attempt, headers, asked ?? WAIT_MS);
}

/** @returns {Verdict} */
function judge(attempt, status, body, asked) {
  // An API that answers 200 while it still works on it.
  if (status === 200 && startsWith(body, 'PENDING')) return retry('not-applied', 'success', WAIT_MS, 'pending');
  // The same request is to be sent elsewhere: nothing was done here.
  if ((status === 307 || status === 308) && attempt.effect !== 'safe') {
    return deliver('not-applied', 'success', 'to be sent elsewhere');
  }
  if (status >= 200 && status < 400) return deliver('applied', 'success', 'success');
  if (status === 425) return retry('not-applied', 'ignore', asked ?? WAIT_MS, 'too early');
  if (status === 429) {
    const wait = asked ?? 5000n;
    return { ...retry('throttled', 'ignore', wait, 'fewer requests'), pauseMs: wait };
  }
  if (leavesUnknown(status)) return inDoubt(attempt, asked ?? WAIT_MS);
  return deliver('rejected', 'success', 'refused');
}

// The wait where the upstream asks for none. Times are BigInt: the contract's are 64 bits wide.
const WAIT_MS = 2000n;

// A write that may have been done is never sent again blindly.
function inDoubt(attempt, delayMs) {
  if (attempt.effect === 'unsafe') return deliver('unknown', 'failure', 'it may have been done');
  return retry('unknown', 'failure', delayMs, 'no usable answer');
}

// The upstream or a gateway gave up (408, 460, 499), is in trouble (any 5xx but 501, 505, 511), or did not answer in HTTP.
function leavesUnknown(status) {
  if ([501, 505, 511].includes(status)) return false;
  return [408, 460, 499].includes(status) || status < 200 || status >= 500;
}

// `x-should-retry: false` ends a retry; `true` allows one where sending again is harmless. It is no proof for a write.
function hinted(verdict, attempt, headers, delayMs) {
  const hint = value(headers, 'x-should-retry') ?? value(headers, 'stripe-should-retry');
  if (hint === 'false' && verdict.next.tag === 'retry') return { ...verdict, next: { tag: 'deliver' } };
  if (hint === 'true' && verdict.class === 'rejected' && attempt.effect !== 'unsafe') {
    return retry('not-applied', 'ignore', delayMs, 'refused, but the upstream says that a retry helps');
  }
  return verdict;
}

// The wait that the upstream asks for, in milliseconds: `retry-after-ms`, else `retry-after` in seconds or as a date.
function askedMs(headers, nowUnixMs) {
  const number = (text) => (/^\d{1,12}$/.test(text ?? '') ? BigInt(text) : undefined);
  const ms = number(value(headers, 'retry-after-ms')) ?? number(value(headers, 'x-ms-retry-after-ms'));
  if (ms !== undefined) return ms;
  const after = value(headers, 'retry-after');
  const seconds = number(after);
  if (seconds !== undefined) return seconds * 1000n;
  const date = Date.parse(after ?? '');
  if (Number.isNaN(date)) return undefined;
  const left = BigInt(date) - nowUnixMs;
  return left > 0n ? left : 0n;
}

const value = (headers, name) => headers.find((header) => header.name === name)?.value.trim();

/** @type {(what: Class, breaker: BreakerSignal, reason: string) => Verdict} */
const deliver = (what, breaker, reason) => ({ class: what, breaker, next: { tag: 'deliver' }, reason });

/** @type {(what: Class, breaker: BreakerSignal, delayMs: bigint, reason: string) => Verdict} */
const retry = (what, breaker, delayMs, reason) => ({ class: what, breaker, next: { tag: 'retry', val: delayMs }, reason });

// A body is bytes: a Uint8Array.
const startsWith = (bytes, text) => [...text].every((letter, index) => bytes[index] === letter.charCodeAt(0));

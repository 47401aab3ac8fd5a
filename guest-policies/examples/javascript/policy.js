// parcels: what went wrong, and whether to try again. The contract, with every field explained, is in wit/.

/** Says what the policy is. */
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
        responseHeaders: ['retry-after'],
        responseBodyBytes: 200,
      },
      settled: [],
      defaults: { limits: [] },
    }],
  };
}

/** Takes the table `policy_settings` of the configuration, as JSON; a text that it throws refuses the policy. */
export function configure(settings) {
  try {
    JSON.parse(settings);
  } catch (error) {
    throw error.message;
  }
}

/** Judges the outcome of one attempt. */
export function decide(attempt, outcome) {
  if (outcome.tag === 'response') {
    const { status, body } = outcome.val;
    // An API that answers 200 while it still works on it.
    if (startsWith(body, 'PENDING')) return retry('not-applied', 'success', 2000n, 'pending');
    if (status < 400) return deliver('applied', 'success', 'success');
    if (status === 429) return { ...retry('throttled', 'ignore', 5000n, 'fewer requests'), pauseMs: 5000n };
    if (status < 500) return deliver('rejected', 'success', 'refused');
  }
  // A write that may have been done is never sent again blindly.
  if (attempt.effect === 'unsafe') return deliver('unknown', 'failure', 'it may have been done');
  return retry('unknown', 'failure', 2000n, 'no usable answer');
}

const deliver = (what, breaker, reason) => ({ class: what, breaker, next: { tag: 'deliver' }, reason });

const retry = (what, breaker, delayMs, reason) => ({ class: what, breaker, next: { tag: 'retry', val: delayMs }, reason });

// A body is bytes: a Uint8Array.
const startsWith = (bytes, text) => [...text].every((letter, index) => bytes[index] === letter.charCodeAt(0));

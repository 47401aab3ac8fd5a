declare module 'triage:policy/types@0.1.0' {
  /**
   * What sending a request may do, as RFC 9110 section 9.2 (and RFC 10008 for QUERY) has it. The host takes the stricter of this and the method's own.
   * # Variants
   * 
   * ## `"safe"`
   * 
   * Reads only: may be sent any number of times.
   * ## `"idempotent"`
   * 
   * Sending it twice leaves what sending it once leaves.
   * ## `"unsafe"`
   * 
   * Each send may have an effect of its own.
   */
  export type Effect = 'safe' | 'idempotent' | 'unsafe';
  /**
   * One header field.
   */
  export interface Header {
    /**
     * The field's name, in lower case.
     */
    name: string,
    /**
     * The field's value, one character for each byte.
     */
    value: string,
  }
  /**
   * A range of statuses, both ends included.
   */
  export interface StatusRange {
    /**
     * The lowest status of the range.
     */
    first: number,
    /**
     * The highest status of the range.
     */
    last: number,
  }
  /**
   * What the policy reads of each exchange. Nothing else is handed to it, and no body is buffered beyond these lengths.
   */
  export interface Interest {
    /**
     * Whether `attempt.path` is filled.
     */
    path: boolean,
    /**
     * Names of the request headers that are handed over.
     */
    requestHeaders: Array<string>,
    /**
     * How many bytes of the request body are handed over; 0 for none.
     */
    requestBodyBytes: number,
    /**
     * Names of the response headers that are handed over.
     */
    responseHeaders: Array<string>,
    /**
     * How many bytes of a response body are handed over; 0 for none.
     */
    responseBodyBytes: number,
  }
  /**
   * A rate limit: `requests` each `period-ms` over the long run, at most `burst` at once.
   */
  export interface Limit {
    /**
     * How many requests a period admits.
     */
    requests: number,
    /**
     * The length of the period in milliseconds.
     */
    periodMs: number,
    /**
     * How many requests may be admitted at one instant.
     */
    burst: number,
  }
  /**
   * What the policy proposes for an endpoint; the operator's configuration goes before it.
   */
  export interface Defaults {
    /**
     * The limit on one attempt, in milliseconds.
     */
    attemptTimeoutMs?: number,
    /**
     * The limit on the whole request, in milliseconds.
     */
    deadlineMs?: number,
    /**
     * How many attempts a request may make, the first one counted.
     */
    maxAttempts?: number,
    /**
     * The rate limits, all of which an attempt must pass.
     */
    limits: Array<Limit>,
    /**
     * How many attempts may be under way at once.
     */
    concurrency?: number,
  }
  /**
   * One operation of the upstream.
   */
  export interface Endpoint {
    /**
     * A name that is unique in the description, such as `create-hospital`.
     */
    name: string,
    /**
     * The method in upper case, or `*` for every method that no other endpoint of the same path names.
     */
    method: string,
    /**
     * A URI template such as `/hospitals/{id}`; `{*rest}` at the end takes all that follows.
     */
    path: string,
    /**
     * What a request may do. The method's own effect holds where that is stricter; only a policy that the host brings along
     * may say less of a method that it names, such as `safe` of a search by POST.
     */
    effect: Effect,
    /**
     * What the policy reads.
     */
    interest: Interest,
    /**
     * Statuses that always mean `applied` and `deliver`: the policy is not called for them. 2xx and 3xx only, and never
     * honoured on unsafe endpoints.
     */
    settled: Array<StatusRange>,
    /**
     * The longest time after the last byte sent in which the upstream may still apply the request, in milliseconds. Only
     * endpoints that have it can settle an unknown write by a probe's finding nothing.
     */
    commitWithinMs?: number,
    /**
     * The settings that the policy proposes.
     */
    defaults: Defaults,
  }
  /**
   * A cheap request that shows whether the upstream lives.
   */
  export interface HealthCall {
    /**
     * The path and query of a GET that any 2xx answers.
     */
    pathAndQuery: string,
    /**
     * How long the answer may take, in milliseconds.
     */
    timeoutMs: number,
    /**
     * How long the upstream may be idle before creates first wait for this call (a deployment that falls asleep), in
     * milliseconds.
     */
    asleepAfterMs?: number,
    /**
     * How long a sleeping upstream may take to answer this call, in milliseconds.
     */
    wakeWithinMs: number,
  }
  /**
   * What the policy is and which endpoints it knows.
   */
  export interface Description {
    /**
     * The policy's name, such as `hospital-directory`.
     */
    name: string,
    /**
     * The policy's own version.
     */
    version: string,
    /**
     * The endpoints; `attempt.endpoint` is an index into this list.
     */
    endpoints: Array<Endpoint>,
    /**
     * The upstream's health call, where it has one.
     */
    health?: HealthCall,
  }
  /**
   * Why an outcome is being judged.
   * # Variants
   * 
   * ## `"request"`
   * 
   * It is the outcome of the request itself.
   * ## `"probe"`
   * 
   * It is the outcome of a probe that the policy asked for with `verify`.
   */
  export type Purpose = 'request' | 'probe';
  /**
   * The attempt whose outcome is judged.
   */
  export interface Attempt {
    /**
     * Index into the description's endpoints.
     */
    endpoint: number,
    /**
     * The effect as the host has it: the strictest of method, policy and configuration.
     */
    effect: Effect,
    /**
     * Whether the outcome is the request's or a probe's.
     */
    purpose: Purpose,
    /**
     * Which attempt of this purpose it is, from 1.
     */
    number: number,
    /**
     * Whether an earlier attempt's effect is unknown, so that "already there" may be our own doing.
     */
    priorUnknown: boolean,
    /**
     * Milliseconds since the last byte of the request may have been sent; none where nothing was sent.
     */
    sentMsAgo?: bigint,
    /**
     * Milliseconds since the host took the request.
     */
    elapsedMs: bigint,
    /**
     * Milliseconds that are left until the request's deadline.
     */
    remainingMs: bigint,
    /**
     * The delay before this attempt, in milliseconds; 0 before the first.
     */
    previousDelayMs: bigint,
    /**
     * Chance, from the host.
     */
    random: bigint,
    /**
     * The wall clock, in milliseconds since 1970.
     */
    nowUnixMs: bigint,
    /**
     * Whether the caller gave an idempotency key.
     */
    keyed: boolean,
    /**
     * Path and query as sent to the upstream, if `interest.path`; else empty.
     */
    path: string,
    /**
     * The request headers of `interest`, in the order received.
     */
    requestHeaders: Array<Header>,
    /**
     * The first bytes of the request body, as `interest` has it.
     */
    requestBody: Uint8Array,
    /**
     * Claims that other requests own and that this request must not adopt.
     */
    taken: Array<string>,
  }
  /**
   * An upstream's answer.
   */
  export interface Response {
    /**
     * The status.
     */
    status: number,
    /**
     * The response headers of `interest`, in the order received.
     */
    headers: Array<Header>,
    /**
     * The first bytes of the body, as `interest` has it.
     */
    body: Uint8Array,
    /**
     * Whether `body` is all of it.
     */
    complete: boolean,
  }
  /**
   * What went wrong where there is no answer.
   * # Variants
   * 
   * ## `"dns"`
   * 
   * The upstream's name could not be resolved.
   * ## `"connect"`
   * 
   * The connection was refused or could not be made.
   * ## `"connect-timeout"`
   * 
   * The connection was not made in time.
   * ## `"tls"`
   * 
   * The TLS handshake failed.
   * ## `"send"`
   * 
   * Writing the request failed.
   * ## `"reset"`
   * 
   * The upstream closed the connection before it answered.
   * ## `"timeout"`
   * 
   * The attempt's time ran out.
   * ## `"protocol"`
   * 
   * The answer was not HTTP.
   * ## `"body"`
   * 
   * The answer's body broke off.
   */
  export type FailureKind = 'dns' | 'connect' | 'connect-timeout' | 'tls' | 'send' | 'reset' | 'timeout' | 'protocol' | 'body';
  /**
   * An attempt that brought no answer.
   */
  export interface Failure {
    /**
     * What went wrong.
     */
    kind: FailureKind,
    /**
     * Whether any byte of the request may have reached the upstream.
     */
    sent: boolean,
  }
  /**
   * What an attempt brought.
   */
  export type Outcome = OutcomeResponse | OutcomeFailure;
  /**
   * An answer.
   */
  export interface OutcomeResponse {
    tag: 'response',
    val: Response,
  }
  /**
   * No answer.
   */
  export interface OutcomeFailure {
    tag: 'failure',
    val: Failure,
  }
  /**
   * What became of the request's effect.
   * # Variants
   * 
   * ## `"applied"`
   * 
   * It took place, by this attempt.
   * ## `"already-applied"`
   * 
   * It was in place already.
   * ## `"not-applied"`
   * 
   * It did not take place.
   * ## `"throttled"`
   * 
   * It did not take place: the upstream wants fewer requests.
   * ## `"unknown"`
   * 
   * It may have taken place.
   * ## `"rejected"`
   * 
   * It did not take place, and sending the same again cannot help.
   */
  export type Class = 'applied' | 'already-applied' | 'not-applied' | 'throttled' | 'unknown' | 'rejected';
  /**
   * What the outcome says of the upstream's health.
   * # Variants
   * 
   * ## `"success"`
   * 
   * The upstream works.
   * ## `"failure"`
   * 
   * The upstream is in trouble.
   * ## `"ignore"`
   * 
   * It says nothing.
   */
  export type BreakerSignal = 'success' | 'failure' | 'ignore';
  /**
   * A safe request to the same upstream that finds out what became of a write.
   */
  export interface Probe {
    /**
     * `GET`, `HEAD`, `OPTIONS` or `QUERY`. A probe has no body.
     */
    method: string,
    /**
     * Path and query, from the upstream's root.
     */
    pathAndQuery: string,
    /**
     * Further request headers; the caller's credentials are added by the host.
     */
    headers: Array<Header>,
    /**
     * How long to wait first, in milliseconds.
     */
    delayMs: bigint,
  }
  /**
   * An answer that takes the place of the upstream's.
   */
  export interface Replacement {
    /**
     * The status.
     */
    status: number,
    /**
     * The headers.
     */
    headers: Array<Header>,
    /**
     * The body.
     */
    body: Uint8Array,
  }
  /**
   * What to do next.
   */
  export type Next = NextDeliver | NextRetry | NextVerify | NextReplace;
  /**
   * Give the upstream's answer (or the failure) to the caller.
   */
  export interface NextDeliver {
    tag: 'deliver',
  }
  /**
   * Send the request again after so many milliseconds.
   */
  export interface NextRetry {
    tag: 'retry',
    val: bigint,
  }
  /**
   * Find out what became of it, then judge again.
   */
  export interface NextVerify {
    tag: 'verify',
    val: Probe,
  }
  /**
   * Give this answer to the caller.
   */
  export interface NextReplace {
    tag: 'replace',
    val: Replacement,
  }
  /**
   * A policy's judgement of an outcome. The host clamps it.
   */
  export interface Verdict {
    /**
     * What became of the request's effect.
     */
    'class': Class,
    /**
     * What the outcome says of the upstream's health.
     */
    breaker: BreakerSignal,
    /**
     * What to do next.
     */
    next: Next,
    /**
     * A name for the upstream's resource that this request made: one that survives a restart of the upstream. The host
     * lets one request own it.
     */
    claim?: string,
    /**
     * For how many milliseconds every host should hold its requests back; none for not at all. The host caps it.
     */
    pauseMs?: bigint,
    /**
     * A few words for logs: no request data.
     */
    reason: string,
  }
}

/// <reference path="./interfaces/triage-policy-types.d.ts" />
declare module 'triage:policy/policy@0.1.0' {
  export type Attempt = import('triage:policy/types@0.1.0').Attempt;
  export type Description = import('triage:policy/types@0.1.0').Description;
  export type Outcome = import('triage:policy/types@0.1.0').Outcome;
  export type Verdict = import('triage:policy/types@0.1.0').Verdict;
  export type * as TriagePolicyTypes010 from 'triage:policy/types@0.1.0'; // import triage:policy/types@0.1.0
  /**
  * Says what the policy is. Called when it is loaded, before `configure`, and where the operator gives settings once more
  * after it: settings may change an endpoint's values (a time to commit, a limit), not which endpoints there are.
  */
  export function describe(): Description;
  /**
  * Takes the operator's settings, a JSON object (`{}` where there are none). Called once on every fresh instance; an
  * error refuses the policy at load.
  */
  export function configure(settings: string): void;
  /**
  * Judges the outcome of one attempt or probe.
  */
  export function decide(attempt: Attempt, outcome: Outcome): Verdict;
  export type Result<T, E> = { tag: 'ok', val: T } | { tag: 'err', val: E };
}

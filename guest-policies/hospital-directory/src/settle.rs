//! Settling a write whose effect is unknown: look at the batch, early and again; give up late.

use crate::{
    Settings,
    directory::{self, Hospital, Wanted},
    endpoints::{COMMIT_WITHIN_MS, Call},
};
use triage_policy::{
    Attempt, Outcome, Response, Verdict, json,
    verdict::{BreakerSignal, Class},
};

/// What a probe says of the batch.
enum Batch {
    /// These hospitals.
    Holds(Vec<Hospital>),
    /// No hospital, by the server's exact words.
    Empty,
    /// The server is in trouble, or the answer cannot be read.
    Unclear,
    /// An answer that no look will change.
    Useless,
}

/// Begins to look. A create without a batch id cannot be told from a twin: it stays unknown.
pub fn begin(call: Call, attempt: &Attempt, reason: &str) -> Verdict {
    match batch(call, attempt) {
        Some(batch) => look(&batch, attempt, reason),
        None => Verdict::deliver(Class::Unknown, "without a batch id it cannot be told from a twin"),
    }
}

fn look(batch: &str, attempt: &Attempt, reason: &str) -> Verdict {
    Verdict::verify(format!("/hospitals/batch/{batch}"), delay_ms(attempt), reason)
}

/// Early and again: as long as it took so far, from a quarter of a second to 10 s, and once right after the commit time.
fn delay_ms(attempt: &Attempt) -> u64 {
    let ago = attempt.sent_ms_ago.unwrap_or(0);
    let commit_within = u64::from(COMMIT_WITHIN_MS);
    if ago > commit_within {
        // Only an unclear answer brings a look this late.
        return 1_000;
    }
    let next = if attempt.purpose == triage_policy::Purpose::Request { 250 } else { ago.clamp(250, 10_000) };
    next.min(commit_within + 1 - ago)
}

/// Judges what a look brought.
pub fn probed(settings: &Settings, call: Call, attempt: &Attempt, outcome: &Outcome) -> Verdict {
    let Some(batch) = batch(call, attempt) else {
        return Verdict::deliver(Class::Unknown, "without a batch id it cannot be told from a twin");
    };
    let healthy = |verdict: Verdict| verdict.breaker(BreakerSignal::Success);
    let hospitals = match read(outcome) {
        Batch::Holds(hospitals) => hospitals,
        Batch::Empty => Vec::new(),
        Batch::Unclear => return look(&batch, attempt, "the look failed"),
        Batch::Useless => {
            return Verdict::deliver(Class::Unknown, "the look proves nothing").breaker(BreakerSignal::Success);
        }
    };
    let late = attempt.sent_ms_ago.is_none_or(|ago| ago >= u64::from(COMMIT_WITHIN_MS));
    let found = match call {
        Call::Create => created(attempt, &hospitals),
        _ => activated(&hospitals, late),
    };
    match found {
        Some(verdict) => verdict,
        None if late => {
            let wait = settings.wait.ms(attempt);
            healthy(Verdict::retry(Class::NotApplied, wait, "not there after the time it takes to commit"))
        }
        None => healthy(look(&batch, attempt, "not there yet")),
    }
}

/// The first match that no other request owns.
fn created(attempt: &Attempt, hospitals: &[Hospital]) -> Option<Verdict> {
    let wanted: Wanted = directory::wanted(&attempt.request_body)?;
    let free = |hospital: &&Hospital| {
        hospital.is(&wanted) && hospital.claim().is_some_and(|claim| !attempt.taken.contains(&claim))
    };
    let hospital = hospitals.iter().find(free)?;
    let body = json::json!({
        "id": hospital.id, "name": hospital.name, "address": hospital.address, "phone": hospital.phone,
        "creation_batch_id": hospital.creation_batch_id, "active": hospital.active, "created_at": hospital.created_at,
    });
    let verdict = Verdict::replace(Class::AlreadyApplied, 200, body.to_string().into_bytes(), "found in the batch");
    Some(verdict.claiming(hospital.claim()?))
}

/// All active: it is done. Some: a row came late, and only the caller can repair that, once no more can come.
fn activated(hospitals: &[Hospital], late: bool) -> Option<Verdict> {
    let active = hospitals.iter().filter(|hospital| hospital.active).count();
    if active > 0 && active == hospitals.len() {
        let body = json::json!({"activated_count": active, "message": "Batch activated"});
        let body = body.to_string().into_bytes();
        return Some(Verdict::replace(Class::AlreadyApplied, 200, body, "all of the batch is active"));
    }
    (active > 0 && late).then(|| Verdict::deliver(Class::Rejected, "a part of the batch is active"))
}

fn batch(call: Call, attempt: &Attempt) -> Option<String> {
    match call {
        Call::Create => {
            directory::wanted(&attempt.request_body).and_then(|wanted| directory::batch(&wanted).map(str::to_owned))
        }
        Call::Activate => directory::batch_of_path(&attempt.path).map(str::to_owned),
        _ => None,
    }
}

fn read(outcome: &Outcome) -> Batch {
    let response: &Response = match outcome {
        Outcome::Response(response) => response,
        Outcome::Failure(_) => return Batch::Unclear,
    };
    match response.status {
        200 => directory::hospitals(response).map_or(Batch::Unclear, Batch::Holds),
        404 if directory::detail(response).as_deref() == Some(directory::BATCH_EMPTY) => Batch::Empty,
        408 | 429 | 500..=599 => Batch::Unclear,
        _ => Batch::Useless,
    }
}

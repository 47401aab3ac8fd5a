#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod effective;
mod hostile;
mod layers;
mod problems;
mod reference;
mod reload;

use super::*;
use crate::policy::contract::{Defaults, Description, Effect, Endpoint, Interest, ProposedLimit};
use std::time::Duration;

/// The smallest valid file.
const LEAST: &str = "[upstreams.a]\nbase_url = \"http://a.example\"\n";

fn inputs(text: &str, environment: &[(&str, &str)], flags: Flags) -> Inputs {
    Inputs {
        file: (!text.is_empty()).then(|| ("triage.toml".to_owned(), text.to_owned())),
        environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        flags,
    }
}

fn loaded(text: &str, environment: &[(&str, &str)], flags: Flags) -> Loaded {
    load(&inputs(text, environment, flags)).unwrap_or_else(|problems| panic!("{problems}"))
}

fn sets(sets: &[&str]) -> Flags {
    Flags { set: sets.iter().map(|set| (*set).to_owned()).collect(), ..Flags::default() }
}

/// The first endpoint that the test policy describes.
fn create() -> Endpoint {
    Endpoint {
        name: "create-hospital".to_owned(),
        method: Some(http::Method::POST),
        path: "/hospitals/".to_owned(),
        effect: Effect::Unsafe,
        interest: Interest::default(),
        settled: Vec::new(),
        commit_within: Some(Duration::from_secs(75)),
        defaults: Defaults {
            attempt_timeout: Some(Duration::from_secs(30)),
            deadline: Some(Duration::from_secs(120)),
            max_attempts: Some(4),
            limits: vec![ProposedLimit { requests: 1, period: Duration::from_millis(6_500), burst: 20 }],
            concurrency: Some(20),
        },
    }
}

fn description() -> Description {
    let list = Endpoint {
        name: "list-hospitals".to_owned(),
        method: Some(http::Method::GET),
        effect: Effect::Safe,
        defaults: Defaults::default(),
        ..create()
    };
    Description {
        name: "hospital-directory".to_owned(),
        version: "1".to_owned(),
        endpoints: vec![create(), list],
        health: None,
    }
}

//! stub
#![allow(missing_docs)]
use crate::{clock::Clock, config::settings, entropy::Entropy, policy::contract::BreakerSignal, rate_limit::Quota};
use std::time::Duration;
#[derive(Debug, Clone, Copy)]
pub struct Group(pub usize);
#[derive(Debug, Clone, Copy)]
pub enum Ask { First, Retry, Probe }
#[derive(Debug)]
pub enum Refusal { BreakerOpen { retry_after: Duration, why: &'static str }, RateLimited { quota: Option<Quota>, retry_after: Duration }, BudgetExhausted { retry_after: Duration } }
#[derive(Debug)]
pub enum Recheck { Send, Wait(Duration), Refused(Refusal) }
#[derive(Debug)]
pub struct Permit;
impl Permit {
    pub fn wait(&self) -> Duration { Duration::ZERO }
    pub fn is_probe(&self) -> bool { false }
    pub async fn recheck(&mut self) -> Recheck { Recheck::Send }
    pub fn report(self, _signal: BreakerSignal, _took: Duration) {}
}
#[derive(Debug)]
pub struct Gates;
impl Gates {
    pub fn memory(_c: Clock, _e: Entropy) -> Self { Self }
    pub fn group(&mut self, _name: &str, _s: &settings::Endpoint) -> Group { Group(0) }
    pub async fn acquire(&self, _g: Group, _a: Ask, _w: Duration) -> Result<Permit, Refusal> { Ok(Permit) }
    pub async fn pause(&self, _g: Group, _d: Duration) {}
}

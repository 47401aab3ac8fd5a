//! The expected form of an answer. Another server at the same address may answer 200 with other JSON, and a missing member must not
//! read like an empty list or a zero.

use serde_json::Value;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// An object with these members.
    Object(&'static [&'static str]),
    /// An array of objects with these members.
    List(&'static [&'static str]),
}

/// A refusal of the listener.
pub(super) const REFUSAL: Shape = Shape::Object(&["type", "detail"]);

impl Shape {
    /// Whether an answer has this form. Further members are no difference: the host may be newer.
    pub(super) fn fits(self, value: &Value) -> bool {
        let has = |members: &[&str], value: &Value| {
            value.as_object().is_some_and(|own| members.iter().all(|member| own.contains_key(*member)))
        };
        match self {
            Self::Object(members) => has(members, value),
            Self::List(members) => value.as_array().is_some_and(|all| all.iter().all(|one| has(members, one))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_needs_its_members_and_may_have_more() {
        let list = Shape::List(&["id", "upstream"]);
        assert!(list.fits(&json!([])) && list.fits(&json!([{ "id": "a", "upstream": null, "new": 1 }])));
        for other in [json!({}), json!(null), json!([{ "id": "a" }]), json!(["id"]), json!({ "id": 1, "upstream": 2 })]
        {
            assert!(!list.fits(&other), "{other}");
        }
        let object = Shape::Object(&["version"]);
        assert!(object.fits(&json!({ "version": "1" })));
        for other in [json!({}), json!([{ "version": "1" }]), json!("version")] {
            assert!(!object.fits(&other), "{other}");
        }
    }
}

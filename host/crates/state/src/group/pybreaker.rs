//! The keys of a breaker that Python workers share with a group.

/// A breaker of the Python library pybreaker in its `CircuitRedisStorage`: four keys, in pybreaker's format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pybreaker {
    /// The storage's `namespace`; `None`: pybreaker's default. On a Cluster it needs a [`Self::hash_tag`].
    pub namespace: Option<String>,
}

impl Pybreaker {
    /// The keys: state, failures in a row, successes while half-open, time of opening.
    pub fn keys(&self) -> [String; 4] {
        let before = self.namespace.as_deref().map_or(String::new(), |namespace| format!("{namespace}:"));
        ["state", "fail_counter", "success_counter", "opened_at"].map(|what| format!("{before}pybreaker:{what}"))
    }

    /// The hash tag of the namespace: the text between the first `{` and the next `}`, by which a Cluster puts all four keys into one
    /// hash slot.
    pub fn hash_tag(&self) -> Option<&str> {
        let (_, rest) = self.namespace.as_deref()?.split_once('{')?;
        let (tag, _) = rest.split_once('}')?;
        (!tag.is_empty()).then_some(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_hash_tags_are_those_of_pybreaker_and_redis() {
        let named = |namespace: &str| Pybreaker { namespace: Some(namespace.to_owned()) };
        assert_eq!(Pybreaker::default().keys()[0], "pybreaker:state");
        assert_eq!(named("hospital").keys()[3], "hospital:pybreaker:opened_at");
        for (namespace, tag) in [
            ("{hospital}", Some("hospital")),
            ("a{b}{c}", Some("b")),
            ("{{a}}", Some("{a")),
            ("hospital", None),
            ("a{}{b}", None),
            ("}a{", None),
        ] {
            assert_eq!(named(namespace).hash_tag(), tag, "{namespace}");
        }
    }
}

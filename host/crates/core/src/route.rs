//! Routes: from a request to its upstream and endpoint.

use http::Method;
use std::collections::BTreeMap;

/// Why a router could not be built.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// A template is malformed, or matches the same paths as another one.
    #[error("endpoint path {path:?} cannot be routed: {why}; use templates such as /hospitals/{{id}}")]
    Template {
        /// The template.
        path: String,
        /// matchit's reason.
        why: String,
    },
}

/// One upstream's endpoints by path and method.
#[derive(Debug, Default)]
pub struct Router {
    paths: matchit::Router<Route>,
    /// The endpoints of `/{*rest}`, for methods that no more exact template names.
    rest: Route,
}

#[derive(Debug, Default, Clone)]
struct Route {
    by_method: Vec<(Method, usize)>,
    any: Option<usize>,
}

impl Route {
    fn find(&self, method: &Method) -> Option<usize> {
        self.by_method.iter().find(|(named, _)| named == method).map(|(_, endpoint)| *endpoint).or(self.any)
    }
}

impl Router {
    /// Builds a router over `(method, template)` pairs; an endpoint's index is its position in the iterator.
    ///
    /// # Errors
    /// [`RouteError`] names the template that cannot be routed.
    pub fn new<'a>(endpoints: impl Iterator<Item = (Option<&'a Method>, &'a str)>) -> Result<Self, RouteError> {
        let mut slots: BTreeMap<&str, Route> = BTreeMap::new();
        for (index, (method, path)) in endpoints.enumerate() {
            let slot = slots.entry(path).or_default();
            match method {
                // The first one described wins: a policy lists its exact endpoints before its general ones.
                Some(method) if slot.by_method.iter().all(|(named, _)| named != method) => {
                    slot.by_method.push((method.clone(), index));
                }
                None if slot.any.is_none() => slot.any = Some(index),
                _ => {}
            }
        }
        let mut router = Self::default();
        // `matchit` refuses a template that begins with a parameter if `/{*rest}` is in the same tree.
        if let Some(rest) = slots.remove("/{*rest}") {
            router.rest = rest;
        }
        for (path, slot) in slots {
            let failed =
                |error: matchit::InsertError| RouteError::Template { path: path.to_owned(), why: error.to_string() };
            router.paths.insert(path, slot).map_err(failed)?;
        }
        Ok(router)
    }

    /// The endpoint of a request, if there is one.
    pub fn find(&self, method: &Method, path: &str) -> Option<usize> {
        let exact = self.paths.at(path).ok().and_then(|found| found.value.find(method));
        exact.or_else(|| self.rest.find(method))
    }
}

/// Whether a path is free of dot segments, plain or encoded. URL parsers resolve them, so that the upstream would see
/// another path than the one that was routed.
///
/// An upstream may decode a slash before it resolves, or cut parameters off first: `..%2fx` and `..;a/x` are dot segments too.
pub fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') || bytes.contains(&b'\\') {
        return false;
    }
    if !bytes.contains(&b'.') && !bytes.contains(&b'%') {
        return true;
    }
    let mut rest = bytes;
    // The number of dots in the segment so far; none once it cannot be a dot segment any more.
    let mut dots = Some(0);
    while let Some((byte, after)) = decoded(rest) {
        rest = after;
        dots = match (byte, dots) {
            (b'/' | b'\\' | b';', Some(1 | 2)) => return false,
            (b'/' | b'\\', _) => Some(0),
            (b'.', Some(so_far)) => Some(so_far + 1),
            _ => None,
        };
    }
    !matches!(dots, Some(1 | 2))
}

/// The first byte, decoded if it is an encoded dot, slash or backslash, and the bytes after it.
fn decoded(bytes: &[u8]) -> Option<(u8, &[u8])> {
    match bytes {
        [b'%', b'2', b'e' | b'E', rest @ ..] => Some((b'.', rest)),
        [b'%', b'2', b'f' | b'F', rest @ ..] => Some((b'/', rest)),
        [b'%', b'5', b'c' | b'C', rest @ ..] => Some((b'\\', rest)),
        [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn exact_templates_go_before_general_ones() {
        let get = Method::GET;
        let post = Method::POST;
        let endpoints: Vec<(Option<&Method>, &str)> = vec![
            (Some(&get), "/"),
            (Some(&post), "/hospitals/"),
            (Some(&get), "/hospitals/{id}"),
            (Some(&get), "/hospitals/batch/{batch}"),
            (None, "/{*rest}"),
        ];
        let router = Router::new(endpoints.into_iter()).unwrap();
        for (method, path, expected) in [
            ("GET", "/", Some(0)),
            ("POST", "/", Some(4)),
            ("POST", "/hospitals/", Some(1)),
            ("GET", "/hospitals/7", Some(2)),
            ("GET", "/hospitals/batch/x", Some(3)),
            ("DELETE", "/hospitals/7", Some(4)),
            ("POST", "/batches/1/activate", Some(4)),
        ] {
            assert_eq!(router.find(&method.parse().unwrap(), path), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_template_that_begins_with_a_parameter_stands_beside_the_catch_all() {
        let (get, post) = (Method::GET, Method::POST);
        let endpoints = [
            (None, "/{*rest}"),
            (Some(&post), "/"),
            (Some(&get), "/$export"),
            (Some(&get), "/{type}/$export"),
            (Some(&get), "/{type}/{id}/$export"),
            (Some(&post), "/{type}/_search"),
            (Some(&post), "/{type}/{id}/{other}/_search"),
        ];
        let router = Router::new(endpoints.into_iter()).unwrap();
        for (method, path, expected) in [
            ("GET", "/$export", 2),
            ("GET", "/Patient/$export", 3),
            ("POST", "/Patient/$export", 0),
            ("GET", "/Group/1/$export", 4),
            ("GET", "/Patient/1", 0),
            ("POST", "/Patient/_search", 5),
            ("GET", "/Patient/_search", 0),
            ("POST", "/Patient/1/Condition/_search", 6),
            ("POST", "/Patient", 0),
            ("POST", "/", 1),
            ("GET", "/", 0),
        ] {
            assert_eq!(router.find(&method.parse().unwrap(), path), Some(expected), "{method} {path}");
        }
    }

    #[test]
    fn dot_segments_are_not_plain() {
        for (path, plain) in [
            ("/a/b", true),
            ("/a/../b", false),
            ("/a/%2e%2E/b", false),
            ("/a/.%2e", false),
            ("/./a", false),
            ("/a/..b", true),
            ("/a\\..\\b", false),
            ("/a/..%2fb", false),
            ("/a/%2e%2E%2Fb", false),
            ("/a/..%5cb", false),
            ("/a%2f..", false),
            ("/a%2f%2e/b", false),
            ("/a/..;x=1/b", false),
            ("/a/.;/b", false),
            ("/a%2fb", true),
            ("/a/...", true),
            ("/a/..;b..", false),
            ("/a/x..;b/c", true),
            ("/.well-known/x", true),
            ("/a/%2e%2ex", true),
            ("/a/%252e%252e%252fb", true),
            ("/a;b/../c", false),
            ("/..", false),
            ("/", true),
            ("", false),
            ("*", false),
        ] {
            assert_eq!(is_plain(path), plain, "{path}");
        }
    }
}

//! Finds the candidate's endpoint for a recorded request, also if the log does not hold its path.

use super::format::{Endpoint, Head};
use crate::{
    policy::contract::Description,
    route::{RouteError, Router},
};
use http::Method;

/// The candidate's endpoints.
#[derive(Debug)]
pub(super) struct Places<'a> {
    description: &'a Description,
    router: Router,
}

/// The candidate's endpoint for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointMatch {
    At(usize),
    /// No endpoint matches.
    Nowhere,
    /// The endpoint depends on the path, which was not recorded.
    ByPath,
}

/// A recorded endpoint, compared with the candidate's.
#[derive(Debug)]
pub(super) struct Beside {
    /// A path that the recorded endpoint matches.
    sample: String,
    /// The methods (`None`: all) of candidate endpoints that the recorded policy lacks and that match some of this endpoint's paths.
    newcomers: Vec<Option<Method>>,
}

impl<'a> Places<'a> {
    pub(super) fn new(description: &'a Description) -> Result<Self, RouteError> {
        let endpoints = description.endpoints.iter().map(|own| (own.method.as_ref(), own.path.as_str()));
        Ok(Self { description, router: Router::new(endpoints)? })
    }

    /// Compares an endpoint of a head with the candidate's.
    pub(super) fn beside(&self, head: &Head, recorded: &Endpoint) -> Beside {
        let has = |method: Option<&Method>, path: &str| {
            let method = method.map_or("*", Method::as_str);
            head.endpoints.iter().any(|own| own.method == method && shape(&own.path).eq(shape(path)))
        };
        let newcomers = self.description.endpoints.iter().filter(|own| {
            let named = own.method.as_ref().map_or("*", Method::as_str);
            (named == "*" || recorded.method == "*" || named == recorded.method)
                && !has(own.method.as_ref(), &own.path)
                && overlap(&own.path, &recorded.path)
                // Leave out an endpoint that covers the recorded one: it matches all of its paths, also the sample path, which is compared
                // anyway.
                && !covers(&own.path, &recorded.path)
        });
        let newcomers = newcomers.map(|own| own.method.clone()).collect();
        Beside { sample: sample(&recorded.path), newcomers }
    }

    /// Finds the endpoint for a request; `path` if it was recorded.
    pub(super) fn find(&self, beside: &Beside, method: &Method, path: Option<&str>) -> EndpointMatch {
        let found = |path: &str| self.router.find(method, path.split('?').next().unwrap_or_default());
        let depends = |own: &Option<Method>| own.as_ref().is_none_or(|own| own == method);
        match path {
            None if beside.newcomers.iter().any(depends) => EndpointMatch::ByPath,
            _ => found(path.unwrap_or(&beside.sample)).map_or(EndpointMatch::Nowhere, EndpointMatch::At),
        }
    }
}

/// A segment of a path template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    One,
    Rest,
}

fn shape(template: &str) -> impl Iterator<Item = Part<'_>> {
    template.split('/').map(|part| match part {
        _ if part.starts_with("{*") => Part::Rest,
        _ if part.contains('{') => Part::One,
        _ => Part::Text(part),
    })
}

/// Whether some path matches both templates.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (shape(one), shape(other));
    loop {
        match (one.next(), other.next()) {
            (Some(Part::Rest), _) | (_, Some(Part::Rest)) | (None, None) => return true,
            (Some(Part::Text(a)), Some(Part::Text(b))) if a != b => return false,
            (Some(_), Some(_)) => {}
            (None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

/// Whether every path that matches the narrow template matches the wide one too.
fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (shape(wide), shape(narrow));
    loop {
        match (wide.next(), narrow.next()) {
            (Some(Part::Rest), Some(_)) | (None, None) => return true,
            (Some(Part::Text(a)), Some(Part::Text(b))) if a == b => {}
            (Some(Part::One), Some(Part::Text(_) | Part::One)) => {}
            _ => return false,
        }
    }
}

/// A path that matches a template, and that no literal template is likely to contain.
fn sample(template: &str) -> String {
    let parts = shape(template).map(|part| match part {
        Part::Text(text) => text,
        Part::One | Part::Rest => "~",
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_overlap_and_cover() {
        for (one, other, overlaps, covered) in [
            ("/{*rest}", "/a/{id}", true, true),
            ("/a/{id}", "/{*rest}", true, false),
            ("/a/{id}", "/a/{other}", true, true),
            ("/a/{id}", "/a/b", true, true),
            ("/a/b", "/a/{id}", true, false),
            ("/a/b", "/a/c", false, false),
            ("/a/{id}", "/a/{id}/b", false, false),
            ("/a/{*rest}", "/a/{id}/b", true, true),
            ("/a", "/a/", false, false),
            ("/", "/", true, true),
        ] {
            assert_eq!(overlap(one, other), overlaps, "{one} and {other}");
            assert_eq!(covers(one, other), covered, "{one} over {other}");
        }
    }
}

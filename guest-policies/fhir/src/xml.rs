//! `OperationOutcome` in XML, as far as it is needed: the severity and the code of each issue.

use crate::outcome::Entry;
use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};
use std::borrow::Cow;

/// Elements within one another. An outcome that says more than this policy reads is no deeper.
const MAX_DEPTH: usize = 64;
/// Issues that are read.
const MAX_ISSUES: usize = 256;

/// The issues of an outcome; none where it is no outcome or is no XML. What stands before a fault counts.
pub fn issues(body: &[u8]) -> Vec<Entry<'_>> {
    let mut reader = Reader::from_reader(body);
    let mut issues = Vec::new();
    let mut depth = 0;
    while let Ok(event) = reader.read_event() {
        match event {
            Event::Start(element) => {
                if !read(&element, depth, &mut issues) || depth == MAX_DEPTH {
                    break;
                }
                depth += 1;
            }
            Event::Empty(element) => {
                if !read(&element, depth, &mut issues) {
                    break;
                }
            }
            Event::End(_) => depth = depth.saturating_sub(1),
            // A document type may define entities: FHIR has none.
            Event::DocType(_) | Event::Eof => break,
            _ => {}
        }
    }
    issues
}

/// Takes an element over. False: it is no outcome, or there are too many issues.
fn read(element: &BytesStart<'_>, depth: usize, issues: &mut Vec<Entry<'static>>) -> bool {
    match (depth, element.local_name().as_ref()) {
        (0, name) => name == b"OperationOutcome",
        (1, b"issue") if issues.len() == MAX_ISSUES => false,
        (1, b"issue") => {
            issues.push(Entry::default());
            true
        }
        (2, name @ (b"severity" | b"code")) => {
            let value = element.attributes().with_checks(false).flatten().find(|field| field.key.as_ref() == b"value");
            if let (Some(issue), Some(value)) = (issues.last_mut(), value) {
                let value = Cow::Owned(String::from_utf8_lossy(&value.value).into_owned());
                *if name == b"code" { &mut issue.code } else { &mut issue.severity } = value;
            }
            true
        }
        _ => true,
    }
}

//! The `OpenAPI` document. The routing table and the handlers' attributes make it; this module adds what holds for many of them.

use crate::{response::Problem, role::Role};
use utoipa::{
    Modify, OpenApi as _,
    openapi::{
        Content, OpenApi, PathItem, Ref, RefOr, Required, Schema,
        path::Operation,
        schema::AdditionalProperties,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

/// The name of the security scheme.
const BEARER: &str = "bearer";

/// The document of these operations as JSON.
pub(super) fn json(operations: impl IntoIterator<Item = OpenApi>) -> String {
    let mut document = Base::openapi();
    for part in operations {
        document.merge(part);
    }
    complete(&mut document);
    // Maps with text keys always have a JSON form.
    serde_json::to_string(&document).unwrap_or_default()
}

/// The document without its paths.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Triage admin",
        version = "1",
        description = "Health, metrics and control of a Triage host. Times are milliseconds.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "http://127.0.0.1:9464")),
    security(("bearer" = []), ()),
    components(schemas(Problem), responses(Problem)),
    modifiers(&Bearer)
)]
struct Base;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document.components.get_or_insert_default().add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    }
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    document.paths.paths.values_mut().flat_map(|item| {
        let PathItem { get, put, post, delete, options, head, patch, trace, query, .. } = item;
        [get, put, post, delete, options, head, patch, trace, query].into_iter().flatten()
    })
}

/// Marks the operations of routes without authentication.
pub(super) fn unauthenticated(mut document: OpenApi) -> OpenApi {
    for operation in operations(&mut document) {
        operation.security = Some(Vec::new());
    }
    document
}

/// Marks the operations of routes that need this role: they may answer with the authentication's refusals. Hosts without tokens admit
/// every caller.
pub(super) fn authenticated(mut document: OpenApi, role: Role) -> OpenApi {
    for operation in operations(&mut document) {
        operation.security =
            Some(vec![SecurityRequirement::new(BEARER, [role.name()]), SecurityRequirement::default()]);
        for status in ["401", "403", "429"] {
            let problem = RefOr::Ref(Ref::from_response_name("Problem"));
            operation.responses.responses.insert(status.to_owned(), problem);
        }
    }
    document
}

/// Adds what the types say but their derived schemas do not: a response has every property and no other, and a body whose properties are
/// all optional is optional.
fn complete(document: &mut OpenApi) {
    let mut bodies = Vec::new();
    let mut components = document.components.take().unwrap_or_default();
    for operation in operations(document) {
        let Some(RefOr::T(body)) = &mut operation.request_body else { continue };
        for content in body.content.values() {
            let RefOr::T(Content { schema: Some(RefOr::Ref(reference)), .. }) = content else { continue };
            let name = reference.ref_location.rsplit('/').next().unwrap_or_default().to_owned();
            let is_optional =
                matches!(components.schemas.get(&name), Some(RefOr::T(Schema::Object(own))) if own.required.is_empty());
            body.required = Some(if is_optional { Required::False } else { Required::True });
            bodies.push(name);
        }
    }
    for (name, schema) in &mut components.schemas {
        let RefOr::T(Schema::Object(object)) = schema else { continue };
        if object.properties.is_empty() || bodies.contains(name) {
            continue;
        }
        object.required = object.properties.keys().cloned().collect();
        object.additional_properties.get_or_insert_with(|| Box::new(AdditionalProperties::FreeForm(false)));
    }
    document.components = Some(components);
}

#[cfg(test)]
#[path = "openapi/tests.rs"]
mod tests;

//! Refuses, before compilation, components that would take the compiler a time out of all proportion to their size. The limits of the
//! compiler's process, if there is one ([`super::compiler`]), stop the cases that these checks miss.
//!
//! The compiler's time grows with the square of the nesting depth, of components and of blocks in a function: a file of a few hundred KiB
//! could block every other load for minutes.

use wasmparser::{
    BinaryReaderError, ComponentType, ComponentTypeDeclaration, ComponentTypeSectionReader, FunctionBody,
    InstanceTypeDeclaration, Operator, Parser, Payload,
};

/// The maximum nesting depth of components. A composed policy has two or three levels.
const MAX_COMPONENT_DEPTH: usize = 32;
/// The maximum nesting depth of blocks. An interpreter's largest `switch` has a few hundred cases, each a block.
const MAX_BLOCK_DEPTH: usize = 4096;

/// The maximum nesting depth of instance and component types. An encoded WIT package has three levels. The parser recurses for each level,
/// and the validator panics past a hundred.
const MAX_TYPE_DEPTH: usize = 32;
/// The maximum number of byte pairs in one section that may begin a nested type. A section with more is refused before it is parsed:
/// parsing could overflow the thread's stack.
const MAX_TYPE_BEGINNINGS: usize = 200;

/// The maximum number of functions in all modules of a component. A Python interpreter has about ten thousand.
const MAX_FUNCTIONS: usize = 200_000;
/// The maximum number of types in all modules of a component.
const MAX_CORE_TYPES: usize = 100_000;
/// The maximum number of local variables of a function. An interpreter's largest function has a few thousand.
const MAX_LOCALS: u64 = 10_000;
/// The maximum of local variables times blocks of a function. The compiler may examine each variable in each block.
const MAX_LOCALS_TIMES_BLOCKS: u64 = 10_000_000;

/// The limit that a component exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooDeep {
    /// Nested components.
    #[error("the component nests components deeper than {MAX_COMPONENT_DEPTH}; compose it flatter")]
    Components,
    /// Nested instance or component types.
    #[error("the component nests instance or component types deeper than {MAX_TYPE_DEPTH}; declare them flatter")]
    Types,
    /// The number of functions.
    #[error("the component has more than {MAX_FUNCTIONS} functions; make it smaller")]
    Functions,
    /// The number of types.
    #[error("the component's modules declare more than {MAX_CORE_TYPES} types; make it smaller")]
    CoreTypes,
    /// The number of local variables, or their product with the blocks.
    #[error(
        "a function of the component has more than {MAX_LOCALS} local variables, or more than {MAX_LOCALS_TIMES_BLOCKS} local variables times blocks; split that function"
    )]
    Locals,
    /// Nested blocks of a function.
    #[error("a function of the component nests blocks deeper than {MAX_BLOCK_DEPTH}; split that function")]
    Blocks,
}

/// Checks a component. Stops at a part that does not parse: the engine's error then says more.
pub(super) fn check(bytes: &[u8]) -> Result<(), TooDeep> {
    let (mut depth, mut functions, mut core_types) = (0_usize, 0_usize, 0_usize);
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        match payload {
            Payload::ComponentSection { .. } | Payload::ModuleSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentTypeSection(section) if types_are_deep(&section, bytes) => return Err(TooDeep::Types),
            Payload::FunctionSection(section) => functions = functions.saturating_add(section.count() as usize),
            Payload::TypeSection(section) => core_types = core_types.saturating_add(section.count() as usize),
            Payload::CodeSectionEntry(body) => function(&body)?,
            _ => {}
        }
        if functions > MAX_FUNCTIONS {
            return Err(TooDeep::Functions);
        }
        if core_types > MAX_CORE_TYPES {
            return Err(TooDeep::CoreTypes);
        }
        if depth > MAX_COMPONENT_DEPTH {
            return Err(TooDeep::Components);
        }
    }
    Ok(())
}

/// Whether a section's types are nested too deep.
fn types_are_deep(section: &ComponentTypeSectionReader<'_>, bytes: &[u8]) -> bool {
    // A nested type begins with two tags: that of a type declaration and that of its own kind. Other data may contain the same bytes, so
    // this count is an upper bound of the levels.
    let own = bytes.get(section.range()).unwrap_or_default();
    if own.array_windows().filter(|pair| matches!(pair, [0x01, 0x41 | 0x42])).count() > MAX_TYPE_BEGINNINGS {
        return true;
    }
    section.clone().into_iter().map_while(Result::ok).any(|ty| depth(&ty) > MAX_TYPE_DEPTH)
}

/// The nesting depth of a type. `types_are_deep` bounds the recursion.
fn depth(ty: &ComponentType<'_>) -> usize {
    let deepest = match ty {
        ComponentType::Component(declarations) => declarations.iter().map(|own| match own {
            ComponentTypeDeclaration::Type(ty) => depth(ty),
            _ => 0,
        }),
        ComponentType::Instance(declarations) => {
            let inner = declarations.iter().map(|own| match own {
                InstanceTypeDeclaration::Type(ty) => depth(ty),
                _ => 0,
            });
            return 1 + inner.max().unwrap_or(0);
        }
        _ => return 0,
    };
    1 + deepest.max().unwrap_or(0)
}

fn function(body: &FunctionBody<'_>) -> Result<(), TooDeep> {
    let locals = locals(body).unwrap_or(0);
    let Ok((deepest, blocks)) = blocks(body) else { return Ok(()) };
    if deepest > MAX_BLOCK_DEPTH {
        Err(TooDeep::Blocks)
    } else if locals > MAX_LOCALS || locals.saturating_mul(blocks) > MAX_LOCALS_TIMES_BLOCKS {
        Err(TooDeep::Locals)
    } else {
        Ok(())
    }
}

/// The number of local variables that a function declares.
fn locals(body: &FunctionBody<'_>) -> Result<u64, BinaryReaderError> {
    body.get_locals_reader()?.into_iter().map(|local| local.map(|(count, _)| u64::from(count))).sum()
}

/// The nesting depth and the number of a function's blocks. The function's body counts as a block.
fn blocks(body: &FunctionBody<'_>) -> Result<(usize, u64), BinaryReaderError> {
    let (mut depth, mut deepest, mut blocks) = (0_usize, 0, 1);
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                depth += 1;
                blocks += 1;
                deepest = deepest.max(depth);
            }
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok((deepest, blocks))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn nested_blocks(depth: usize) -> Vec<u8> {
        let function = format!("{}{}", "(block ".repeat(depth), ")".repeat(depth));
        wat::parse_str(format!("(component (core module (func {function})))")).unwrap()
    }

    #[test]
    fn blocks_are_counted_by_depth_not_by_number() {
        assert_eq!(check(&nested_blocks(1000)), Ok(()));
        let flat = format!("(component (core module (func {})))", "(block)".repeat(10_000));
        assert_eq!(check(&wat::parse_str(flat).unwrap()), Ok(()));
    }

    /// A component with one type: instances nested to this depth. The assembler refuses such a depth as text.
    fn nested_types(depth: usize) -> Vec<u8> {
        let mut section = vec![1];
        section.extend([0x42, 1, 1].repeat(depth - 1));
        section.extend([0x42, 0]);
        let mut bytes = b"\0asm\x0d\0\x01\0\x07".to_vec();
        let mut size = section.len();
        while size > 0x7f {
            bytes.push((size & 0x7f) as u8 | 0x80);
            size >>= 7;
        }
        bytes.push(size as u8);
        bytes.extend(section);
        bytes
    }

    /// Parsing a hundred thousand levels would overflow the stack.
    #[test]
    fn nested_types_are_refused_before_they_are_read() {
        assert_eq!(check(&nested_types(32)), Ok(()));
        for depth in [33, 200, 2000, 100_000] {
            assert_eq!(check(&nested_types(depth)), Err(TooDeep::Types), "{depth}");
        }
        let siblings = format!("(component {})", "(type (instance))".repeat(1000));
        assert_eq!(check(&wat::parse_str(siblings).unwrap()), Ok(()), "siblings are not nested");
    }

    /// Such a component of 8.5 kB took the compiler 10 s and 564 MB.
    #[test]
    fn many_variables_in_many_blocks_are_refused() {
        let of = |locals: usize, blocks: usize| {
            let (locals, blocks) = ("i32 ".repeat(locals), "(loop)".repeat(blocks));
            let text = format!("(component (core module (func (local {locals}) {blocks})))");
            check(&wat::parse_str(text).unwrap())
        };
        assert_eq!(of(1000, 4000), Ok(()), "an interpreter's");
        assert_eq!(of(10_001, 0), Err(TooDeep::Locals));
        assert_eq!(of(5000, 2001), Err(TooDeep::Locals));
    }

    #[test]
    fn the_policies_at_hand_are_flat() {
        for name in super::super::prebuilt::names() {
            assert_eq!(check(super::super::prebuilt::embedded(name).unwrap()), Ok(()), "{name}");
        }
    }
}

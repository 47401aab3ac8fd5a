//! What of a component would keep the compiler busy out of all proportion to its size, found before it is compiled. What is not found
//! here ends at the limits of the compiler's process, where there is one ([`super::compiler`]).
//!
//! The compiler's time grows with the square of nesting, of components and of blocks in a function: a file of some hundred
//! KiB could keep every other policy out for minutes.

use wasmparser::{
    BinaryReaderError, ComponentType, ComponentTypeDeclaration, ComponentTypeSectionReader, FunctionBody,
    InstanceTypeDeclaration, Operator, Parser, Payload,
};

/// Components in components: a composed policy has two or three levels.
const COMPONENTS: usize = 32;
/// Blocks in blocks: an interpreter's largest `switch` has some hundred cases, each a block.
const BLOCKS: usize = 4096;

/// Instance and component types in each other: an encoded WIT package has three levels. The reader of such types calls itself for each
/// level, and its validator panics past a hundred.
const TYPES: usize = 32;
/// What may begin a nested type in one section. More are refused unread: reading them could use up the thread's stack.
const TYPE_BEGINNINGS: usize = 200;

/// Functions of a component, in all its modules: a Python interpreter has some ten thousand.
const FUNCTIONS: usize = 200_000;
/// Types of a component, in all its modules.
const CORE_TYPES: usize = 100_000;
/// Local variables of a function: an interpreter's largest function has some thousand.
const LOCALS: u64 = 10_000;
/// Local variables times blocks of a function: the compiler may look at each variable in each block.
const LOCALS_IN_BLOCKS: u64 = 10_000_000;

/// Nested past all reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooDeep {
    /// Components.
    #[error("the component holds components nested deeper than {COMPONENTS}; compose it flatter")]
    Components,
    /// Types.
    #[error("the component holds instance or component types nested deeper than {TYPES}; declare them flatter")]
    Types,
    /// Functions.
    #[error("the component has more than {FUNCTIONS} functions; build it smaller")]
    Functions,
    /// Types.
    #[error("the component's modules declare more than {CORE_TYPES} types; build it smaller")]
    CoreTypes,
    /// Local variables.
    #[error(
        "a function of the component has more than {LOCALS} local variables, or {LOCALS_IN_BLOCKS} of them times its blocks; split that function"
    )]
    Locals,
    /// Blocks of a function.
    #[error("a function of the component has blocks nested deeper than {BLOCKS}; split that function")]
    Blocks,
}

/// Checks a component's shape. What does not parse is left to the engine, which says why.
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
        if functions > FUNCTIONS {
            return Err(TooDeep::Functions);
        }
        if core_types > CORE_TYPES {
            return Err(TooDeep::CoreTypes);
        }
        if depth > COMPONENTS {
            return Err(TooDeep::Components);
        }
    }
    Ok(())
}

/// Whether a section's types are nested too deep.
fn types_are_deep(section: &ComponentTypeSectionReader<'_>, bytes: &[u8]) -> bool {
    // Within a type, a nested one begins with the tag of a type's declaration and that of its own kind. Other bytes may look the
    // same, so that this counts at least as many levels as there are.
    let own = bytes.get(section.range()).unwrap_or_default();
    if own.array_windows().filter(|pair| matches!(pair, [0x01, 0x41 | 0x42])).count() > TYPE_BEGINNINGS {
        return true;
    }
    section.clone().into_iter().map_while(Result::ok).any(|ty| depth(&ty) > TYPES)
}

/// How deep a type is nested; the section's check bounds the recursion.
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

/// Checks a function's body.
fn function(body: &FunctionBody<'_>) -> Result<(), TooDeep> {
    let locals = locals(body).unwrap_or(0);
    let Ok((deepest, blocks)) = blocks(body) else { return Ok(()) };
    if deepest > BLOCKS {
        Err(TooDeep::Blocks)
    } else if locals > LOCALS || locals.saturating_mul(blocks) > LOCALS_IN_BLOCKS {
        Err(TooDeep::Locals)
    } else {
        Ok(())
    }
}

/// How many local variables a function declares.
fn locals(body: &FunctionBody<'_>) -> Result<u64, BinaryReaderError> {
    body.get_locals_reader()?.into_iter().map(|local| local.map(|(count, _)| u64::from(count))).sum()
}

/// How deep a function's blocks are nested, and how many there are with its own.
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

    /// A component with one type: instances in instances, so deep. Its text would be too deep for the assembler.
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

    /// A hundred thousand levels would use up the stack of whoever reads them.
    #[test]
    fn nested_types_are_refused_before_they_are_read() {
        assert_eq!(check(&nested_types(32)), Ok(()));
        for depth in [33, 200, 2000, 100_000] {
            assert_eq!(check(&nested_types(depth)), Err(TooDeep::Types), "{depth}");
        }
        let siblings = format!("(component {})", "(type (instance))".repeat(1000));
        assert_eq!(check(&wat::parse_str(siblings).unwrap()), Ok(()), "siblings are not nested");
    }

    /// 8.5 kB that took the compiler 10 s and 564 MB.
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

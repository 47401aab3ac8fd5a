//! What of a component would keep the compiler busy out of all proportion to its size, found before it is compiled.
//!
//! The compiler's time grows with the square of nesting, of components and of blocks in a function: a file of some hundred
//! KiB could keep every other policy out for minutes.

use wasmparser::{BinaryReaderError, FunctionBody, Operator, Parser, Payload};

/// Components in components: a composed policy has two or three levels.
const COMPONENTS: usize = 32;
/// Blocks in blocks: an interpreter's largest `switch` has some hundred cases, each a block.
const BLOCKS: usize = 4096;

/// Nested past all reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooDeep {
    /// Components.
    #[error("the component holds components nested deeper than {COMPONENTS}; compose it flatter")]
    Components,
    /// Blocks of a function.
    #[error("a function of the component has blocks nested deeper than {BLOCKS}; split that function")]
    Blocks,
}

/// Checks a component's shape. What does not parse is left to the engine, which says why.
pub(super) fn check(bytes: &[u8]) -> Result<(), TooDeep> {
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        match payload {
            Payload::ComponentSection { .. } | Payload::ModuleSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CodeSectionEntry(body) if blocks(&body).is_ok_and(|deepest| deepest > BLOCKS) => {
                return Err(TooDeep::Blocks);
            }
            _ => {}
        }
        if depth > COMPONENTS {
            return Err(TooDeep::Components);
        }
    }
    Ok(())
}

/// How deep a function's blocks are nested.
fn blocks(body: &FunctionBody<'_>) -> Result<usize, BinaryReaderError> {
    let (mut depth, mut deepest) = (0_usize, 0);
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(deepest)
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

    #[test]
    fn the_policies_at_hand_are_flat() {
        for name in super::super::prebuilt::names() {
            assert_eq!(check(super::super::prebuilt::embedded(name).unwrap()), Ok(()), "{name}");
        }
    }
}

//! Builds JavaScript with componentize-js and Python with componentize-py. Each builder is installed once, into its own folder.

use super::{BuildError, syntax, user_folders};
use crate::guest_language::Language;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The program that builds policies of one language.
struct Builder {
    language: Language,
    package: &'static str,
    version: &'static str,
    /// A file that exists if the package is installed completely.
    witness: &'static str,
    /// The program that runs the builder.
    program: &'static str,
    /// The program that installs the builder.
    installer: &'static str,
    /// How to install `program` and `installer`.
    install: &'static str,
}

const COMPONENTIZE_JS: Builder = Builder {
    language: Language::JavaScript,
    package: "@bytecodealliance/componentize-js",
    version: "0.23.0",
    witness: "node_modules/@bytecodealliance/componentize-js/src/cli.js",
    program: "node",
    installer: "npm",
    install: "Node.js 20 or later with npm (on Debian `apt-get install nodejs npm`)",
};

const COMPONENTIZE_PY: Builder = Builder {
    language: Language::Python,
    package: "componentize-py",
    version: "0.25.1",
    witness: "componentize_py/__init__.py",
    program: "python3",
    installer: "python3",
    install: "Python 3.10 or later with pip (on Debian `apt-get install python3-pip`)",
};

/// Builds the policy in a folder.
pub(super) fn component(language: Language, dir: &Path) -> Result<Vec<u8>, BuildError> {
    let contract = contract(dir)?;
    let builder = if language == Language::Python { COMPONENTIZE_PY } else { COMPONENTIZE_JS };
    let dir = dir.canonicalize().map_err(|source| BuildError::File { path: dir.to_owned(), source })?;
    if let Some(said) = syntax::error(language, &dir, Builder::command(builder.program)) {
        return Err(BuildError::Syntax { file: language.source(), said });
    }
    let tools = builder.installed(&user_folders::in_cache("tools").ok_or(BuildError::NoFolder)?)?;
    // Run the builders in a temporary folder: they write other files too.
    let work = tempfile::tempdir().map_err(|source| BuildError::File { path: std::env::temp_dir(), source })?;
    let out = work.path().join("policy.wasm");
    tracing::info!("packing {} with {}", language.source(), builder.named());
    let mut command = Builder::command(builder.program);
    match language {
        Language::Python => {
            let run =
                "import sys; from componentize_py import script; sys.argv[0] = 'componentize-py'; sys.exit(script())";
            command.args(["-c", run, "--wit-path"]).arg(&contract).args([
                "--world",
                "policy",
                "componentize",
                "policy",
            ]);
            command.arg("--python-path").arg(&dir).arg("--output").arg(&out);
            command.env("PYTHONPATH", &tools).env("PYTHONDONTWRITEBYTECODE", "1");
        }
        Language::Rust | Language::JavaScript => {
            command.arg(tools.join(builder.witness)).arg(dir.join(language.source())).arg("--wit").arg(&contract);
            // A policy gets no access to these, so leave them out.
            command.args(["--world-name", "policy", "--out"]).arg(&out);
            command.args(["--disable", "random", "clocks", "http", "fetch-event"]);
        }
    }
    let output = builder.run(command.current_dir(work.path()), builder.program)?;
    if !output.status.success() {
        return Err(BuildError::Interpreted { tool: builder.named(), said: said(&output) });
    }
    fs::read(&out).map_err(|source| BuildError::File { path: out, source })
}

impl Builder {
    fn named(&self) -> String {
        format!("{} {}", self.package, self.version)
    }

    fn command(program: &str) -> Command {
        let mut command = Command::new(program);
        // The caller's environment must not change what is installed or run.
        command.env_remove("PYTHONHOME").env_remove("PYTHONSTARTUP").env_remove("NODE_OPTIONS");
        command
    }

    fn run(&self, command: &mut Command, needed: &'static str) -> Result<Output, BuildError> {
        command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                BuildError::NoProgram { language: self.language.title(), needed, install: self.install }
            }
            _ => BuildError::Run { program: needed, source: error },
        })
    }

    /// Returns the folder of the installed builder. Installs the builder if it is missing.
    fn installed(&self, tools: &Path) -> Result<PathBuf, BuildError> {
        let folder =
            tools.join(format!("{}-{}", self.package.rsplit('/').next().unwrap_or(self.package), self.version));
        if folder.join(self.witness).is_file() {
            return Ok(folder);
        }
        let failed = |source| BuildError::File { path: tools.to_owned(), source };
        fs::create_dir_all(tools).map_err(failed)?;
        // Install into a temporary folder and rename it: an interrupted installation must not count as one.
        let beside = tempfile::Builder::new().prefix(".new-").tempdir_in(tools).map_err(failed)?;
        tracing::info!("installing {} into {}; this is done once", self.named(), folder.display());
        let mut command = Self::command(self.installer);
        match self.language {
            Language::Python => {
                command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
                command.arg(beside.path()).arg(format!("{}=={}", self.package, self.version));
            }
            Language::Rust | Language::JavaScript => {
                command.args(["install", "--no-audit", "--no-fund", "--loglevel", "error", "--prefix"]);
                command.arg(beside.path()).arg(format!("{}@{}", self.package, self.version));
            }
        }
        let output = self.run(command.current_dir(beside.path()), self.installer)?;
        if !output.status.success() || !beside.path().join(self.witness).is_file() {
            return Err(BuildError::Install { tool: self.named(), into: folder, said: said(&output) });
        }
        match fs::rename(beside.path(), &folder) {
            Ok(()) => {
                let _ = beside.keep();
                Ok(folder)
            }
            // Another process installed it meanwhile.
            Err(_) if folder.join(self.witness).is_file() => Ok(folder),
            Err(source) => Err(failed(source)),
        }
    }
}

/// The `wit/` folder for a policy: its own copy, or that of the repository around it.
fn contract(dir: &Path) -> Result<PathBuf, BuildError> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let found = dir.ancestors().map(|folder| folder.join("wit")).find(|wit| wit.join("policy.wit").is_file());
    found.ok_or(BuildError::NoContract(dir))
}

/// The last 4000 characters of a program's output.
fn said(output: &Output) -> String {
    const MAX_OUTPUT_CHARS: usize = 4000;
    let text = [&output.stderr[..], &output.stdout[..]].map(|part| String::from_utf8_lossy(part).into_owned()).concat();
    let text = text.trim();
    let from = text.char_indices().rev().nth(MAX_OUTPUT_CHARS).map_or(0, |(index, _)| index);
    text.get(from..).unwrap_or(text).to_owned()
}

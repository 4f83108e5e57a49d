//! Compiles bpf/*.bpf.c, links them into one object (blocked.bpf.c and memory.bpf.c stay ones of their own) and generates the
//! skeletons into OUT_DIR.

use anyhow::{Context, Result};
use libbpf_cargo::SkeletonBuilder;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=../bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let arch = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        other => anyhow::bail!("lockprof has no register layout for {other} (bpf/include/vmlinux.h)"),
    };

    let mut sources: Vec<PathBuf> = fs::read_dir("../bpf")?
        .map(|entry| Ok(entry?.path()))
        .filter(|path| path.as_ref().map_or(true, |p: &PathBuf| p.to_string_lossy().ends_with(".bpf.c")))
        .collect::<Result<_>>()?;
    // Definitions first: libbpf's linker leaves a map's BTF offset at 0 when it met the extern before.
    sources.sort_by_key(|path| (!path.ends_with("core.bpf.c"), path.clone()));

    // Run when a profile begins or ends and never attached: objects of their own.
    let (apart, sources): (Vec<PathBuf>, Vec<PathBuf>) = sources
        .into_iter()
        .partition(|path| path.ends_with("blocked.bpf.c") || path.ends_with("memory.bpf.c"));
    for source in apart {
        let name =
            source.file_name().expect("a source has a name").to_string_lossy().replace(".bpf.c", ".skel.rs");
        generate(&compile(&source, &out, arch)?, &out.join(name))?;
    }

    let linked = out.join("lockprof.bpf.o");
    let mut linker = libbpf_rs::Linker::new(&linked)?;
    for source in &sources {
        linker.add_file(compile(source, &out, arch)?)?;
    }
    linker.link().context("Failed to link the BPF objects")?;
    generate(&linked, &out.join("lockprof.skel.rs"))
}

fn compile(source: &Path, out: &Path, arch: &str) -> Result<PathBuf> {
    let object = out.join(source.file_name().expect("a source has a name")).with_extension("o");
    let mut builder = SkeletonBuilder::new();
    if let Ok(clang) = env::var("CLANG") {
        builder.clang(clang);
    }
    builder
        .source(source)
        .obj(&object)
        // -mcpu=v3: 32-bit registers and short jumps; every kernel since 5.10 has both.
        .clang_args([
            "-I../bpf",
            "-I../bpf/include",
            &format!("-D__TARGET_ARCH_{arch}"),
            "-mcpu=v3",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
        ])
        .build()
        .with_context(|| format!("Failed to compile {}", source.display()))?;
    Ok(object)
}

fn generate(object: &Path, skeleton: &Path) -> Result<()> {
    SkeletonBuilder::new()
        .obj(object)
        // A rustup proxy without the component exits non-zero and would fail the build.
        .rustfmt("/nonexistent")
        .generate(skeleton)
        .context("Failed to generate the skeleton")
}

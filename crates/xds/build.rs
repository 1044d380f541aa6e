//! Finds the descriptor set inside the `envoy-types` package and embeds it, compressed: JSON needs it, and it is 3.3 MB.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let source = envoy_types_folder()?.join("src/generated/types.bin");
    println!("cargo::rerun-if-changed={}", source.display());
    let descriptors = std::fs::read(&source)
        .map_err(|error| format!("envoy-types has no descriptor set at {}: {error}", source.display()))?;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&descriptors)?;
    let target = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.zlib");
    std::fs::write(target, encoder.finish()?)?;
    Ok(())
}

/// Asks Cargo where it keeps the package, so that registries, vendoring and patches all work. Not `--offline`: `metadata` wants the
/// packages of every platform and test, of which a build may have fetched only a part.
fn envoy_types_folder() -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(std::env::var("CARGO")?)
        .args(["metadata", "--locked", "--format-version", "1", "--manifest-path"])
        .arg(Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml"))
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let package = packages
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .ok_or("envoy-types is not among the dependencies")?;
    let manifest = package["manifest_path"].as_str().ok_or("envoy-types has no manifest path")?;
    Ok(Path::new(manifest).parent().ok_or("the manifest has no folder")?.to_path_buf())
}

"""Archives: files, downloads, requirements, model-config.yaml: documented differences."""

from __future__ import annotations

from torchmar.parity.known_difference import KnownDifference

DIFFERENCES = (
    KnownDifference(
        id="no-archive",
        what="a file that is not a zip file",
        torchserve="400 `Model name is not defined.`; 500 without the ending .mar",
        builtin="400 that names the reason",
        reason="an error should contain its cause",
        cases=".*/register no archive",
        aspects="body",
    ),
    KnownDifference(
        id="archive-check",
        what="an archive with an error that `torchmar check` finds",
        torchserve="registers, and its workers fail",
        builtin="400 InvalidModelException with the finding; `torchmar_check_archives=false` disables this",
        reason="none of its code should run first",
        cases=".*/load",
        aspects="status|body",
        first="^500$|'message'",
        second=r"^400$|MAR\d{3}|names no handler",
    ),
    KnownDifference(
        id="manifest",
        what="an invalid manifest",
        torchserve="400 `Failed to parse signature.json.`",
        builtin="400 with what is wrong in it",
        reason="an error should contain its cause",
        cases=".*/load",
        aspects="body",
        first="signature.json",
    ),
    KnownDifference(
        id="file-url",
        what="a `file://` URL in the model store, or a URL whose file name exists there",
        torchserve="500 `Model file already exists`",
        builtin="registered",
        reason="the file exists",
    ),
    KnownDifference(
        id="download-copy",
        what="a registration by http(s) or `file://`",
        torchserve="copied into the model store, and removed from there with the model",
        builtin="nothing is written there",
        reason="the store belongs to the user",
    ),
    KnownDifference(
        id="outside-folder",
        what="a registration with the path of any folder of the machine",
        torchserve="registered, regardless of `allowed_urls`",
        builtin=(
            "404 unless `allowed_urls` matches it as a `file://` URL, or the configuration or command line names it"
        ),
        reason="a registration should not be able to read every folder",
        cases=".*/register an absolute path",
        aspects="body",
        second="outside the model store",
    ),
    KnownDifference(
        id="store-folder",
        what="a registration of `folder/x.mar`",
        torchserve="the store's `x.mar`",
        builtin="the store's `folder/x.mar` if there is one, or else its `x.mar`",
        reason="this is what the request names",
    ),
    KnownDifference(
        id="redirect",
        what="a redirection of a download",
        torchserve="followed to any address",
        builtin="followed if `allowed_urls` matches the target; otherwise 404",
        reason="a redirection would bypass the list",
    ),
    KnownDifference(
        id="download-size",
        what="a download",
        torchserve="no limit",
        builtin="`torchmar_max_download_size` (20 GiB)",
        reason="the disk has a limit",
    ),
    KnownDifference(
        id="download-resume",
        what="a download whose connection breaks",
        torchserve="fails",
        builtin="continues where it broke, also in the next server",
        reason="archives are large",
    ),
    KnownDifference(
        id="digest",
        what="the parameter `digest` of a registration, and `#sha256=` at the end of a URL",
        torchserve="ignored",
        builtin="400 for a file with another SHA-256, which is not opened",
        reason="a name in a bucket can get another content",
    ),
    KnownDifference(
        id="download-error",
        what="`DownloadArchiveException`, `Failed to save model`",
        torchserve="the URL",
        builtin="the URL, and the reason in parentheses",
        reason="an error should contain its cause",
    ),
    KnownDifference(
        id="s3",
        what="archives in S3, Google Cloud Storage and Azure Blob Storage",
        torchserve="https URLs of S3 are signed with the credentials of the environment; `s3://` is 404",
        builtin="`s3://`, `gs://` and `az://` with the credentials of the environment; https URLs of S3 are not signed",
        reason="a URL that a client names should not be signed for it",
    ),
    KnownDifference(
        id="extraction",
        what="extraction",
        torchserve="for every registration",
        builtin="once for all registrations of one content",
        reason="a second version of a large model need not wait",
    ),
    KnownDifference(
        id="requirements",
        what="requirements of an archive",
        torchserve="installed into the extracted archive; deadlock after 64 KB of output; no reason when it fails",
        builtin="installed into a folder beside it; no deadlock; the answer has pip's last lines",
        reason="an error should contain its cause",
    ),
    KnownDifference(
        id="runtime",
        what="an archive with a `runtime` (`MAR-INF/RUNTIME.json`)",
        torchserve="served with the server's Python; its lock file is installed like other requirements",
        builtin="served in an environment of its own, with the Python and the packages that it names",
        reason="models that need different versions of a package can be in one server",
    ),
    KnownDifference(
        id="config-timeouts",
        what="`model-config.yaml` without `responseTimeout` or `startupTimeout`",
        torchserve="120 s, regardless of the registration and the defaults of the server",
        builtin="the value of `models=`, else of the registration, else the server's default",
        reason="a file should not override values that it does not contain",
    ),
    KnownDifference(
        id="config-modes",
        what=(
            "`sequenceBatching`, `continuousBatching`, `parallelType`, `torchrun`, `asyncCommunication` in "
            "`model-config.yaml`"
        ),
        torchserve="supported",
        builtin="400 InvalidModelException that names the key",
        reason="not supported; a clear error is better than a silent difference",
    ),
    KnownDifference(
        id="runtime-cpp",
        what="the runtime `lsp` (C++)",
        torchserve="supported",
        builtin="400 InvalidModelException",
        reason="not supported",
    ),
)

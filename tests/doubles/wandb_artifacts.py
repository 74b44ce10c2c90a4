"""Answers of the W&B double to the queries of `wandb.Api` that list and download artifacts: shapes
alone, no state.

`found` is the artifact asked for; field names and required fields are those of the client's own
response models (0.31).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doubles.wandb_server import Artifact

Json = dict[str, Any]
CREATED = "2030-01-01T00:00:00Z"


def project(entity: str, name: str) -> Json:
    return {"id": "project", "internalId": "project", "name": name, "entity": {"name": entity}}


def collections(entity: str, name: str, type_name: str, collection_names: list[str]) -> Json:
    """ArtifactTypeArtifactCollections: the collections of one type, on one page."""
    edges = []
    for key in collection_names:
        node = {"__typename": "ArtifactSequence", "id": f"sequence-{key}", "name": key, "description": None}
        node |= {"createdAt": CREATED, "updatedAt": None, "project": project(entity, name)}
        edges.append({"node": node | {"type": {"name": type_name}, "tags": {"edges": []}}, "cursor": key})
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    listing = {"totalCount": len(edges), "pageInfo": page, "edges": edges}
    return {"project": {"artifactType": {"artifactCollections": listing}}}


def membership(entity: str, name: str, found: Artifact) -> Json:
    """ArtifactMembershipByName: one artifact in its collection."""
    sequence = {"__typename": "ArtifactSequence", "name": found.name, "project": project(entity, name)}
    latest = {"__typename": "ArtifactAlias", "id": "alias", "alias": "latest"}
    artifact = {
        "__typename": "Artifact",
        "id": found.id,
        "artifactSequence": sequence,
        "versionIndex": found.version,
        "artifactType": {"name": found.type},
        "description": None,
        "metadata": None,
        "ttlDurationSeconds": -1,
        "ttlIsInherited": False,
        "tags": [],
        "historyStep": None,
        "state": "COMMITTED",
        "size": sum(len(content) for content in found.files.values()),
        "digest": found.digest,
        "commitHash": found.id,
        "fileCount": len(found.files),
        "createdAt": CREATED,
        "updatedAt": None,
        "aliases": [latest | {"artifactCollection": sequence}],
    }
    member = {"__typename": "ArtifactCollectionMembership", "id": "member", "versionIndex": found.version}
    member |= {"createdAt": CREATED, "aliases": [latest], "artifactCollection": sequence, "artifact": artifact}
    return {"project": {"artifactCollectionMembership": member}}


def manifest(url: str, found: Artifact) -> Json:
    """FetchArtifactManifest: where the manifest lies."""
    return {"artifact": {"currentManifest": {"file": {"directUrl": f"{url}/manifest/{found.id}"}}}}


def file_urls(url: str, found: Artifact) -> Json:
    """GetArtifactMembershipFileUrls: where the files lie, on one page."""
    edges = [
        {"node": {"__typename": "File", "name": name, "directUrl": f"{url}/artifact/{found.id}/{name}"}}
        for name in found.files
    ]
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    listing = {"files": {"pageInfo": page, "edges": edges}}
    return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": listing}}}

"""The CloudFormation templates: linted, and deployed to moto as far as it knows their resources."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from cfnlint.decode import decode
from moto import mock_aws

from downloader.config import Settings, load_settings

TEMPLATES = Path(__file__).parents[1] / "aws"
REGION = "eu-west-2"
UNKNOWN = {
    "AWS::ElastiCache::ParameterGroup",
    "AWS::ElastiCache::ReplicationGroup",
    "AWS::ElastiCache::SubnetGroup",
    "AWS::IAM::OIDCProvider",
    "AWS::IAM::RolePolicy",
    "AWS::S3::BucketPolicy",
    "AWS::SecretsManager::Secret",
}
"""Resources that moto 5.2 cannot make: what refers to them gets their names instead."""


def known(template: Any, gone: set[str]) -> Any:
    """The template, with the names of resources that are gone in place of what refers to them."""
    match template:
        case {"Ref": str(name)} if name in gone:
            return f"arn:of:{name}"
        case {"Fn::GetAtt": [str(name), *_]} if name in gone:
            return name
        case {"Fn::Sub": str(text)} if any(f"${{{name}." in text for name in gone):
            for name in gone:
                text = text.replace(f"${{{name}.PrimaryEndPoint.Address}}", "cache.example").replace(
                    f"${{{name}.PrimaryEndPoint.Port}}", "6379"
                )
            return {"Fn::Sub": text}
        case dict():
            return {key: known(value, gone) for key, value in template.items()}
        case list():
            return [known(value, gone) for value in template]
    return template


def template_of(name: str) -> Any:
    template, problems = decode(str(TEMPLATES / f"{name}.yaml"))
    assert not problems
    return json.loads(json.dumps(template))


def for_moto(name: str) -> str:
    template = template_of(name)
    gone = {key for key, value in template["Resources"].items() if value["Type"] in UNKNOWN}
    template["Resources"] = {key: value for key, value in template["Resources"].items() if key not in gone}
    return json.dumps(known(template, gone))


def create(stack: str, template: str, **parameters: str) -> dict[str, str]:
    """Make a stack; answer its outputs."""
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=stack,
        TemplateBody=for_moto(template),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
    )
    [made] = client.describe_stacks(StackName=stack)["Stacks"]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in made["Outputs"]}


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        yield


@pytest.fixture(scope="module")
def outputs(aws: None) -> dict[str, str]:
    """Of the service's stack, in a network of moto's."""
    network = boto3.client("ec2")
    [vpc] = network.describe_vpcs()["Vpcs"]
    subnets = ",".join(subnet["SubnetId"] for subnet in network.describe_subnets()["Subnets"][:2])
    return create(
        "downloader-staging",
        "service",
        Environment="staging",
        Image="1.dkr.ecr.eu-west-2.amazonaws.com/downloader-staging@sha256:0",
        VpcId=vpc["VpcId"],
        PrivateSubnets=subnets,
        LoadBalancerSubnets=subnets,
        ClientCidr="10.0.0.0/8",
    )


def task(role: str) -> dict[str, Any]:
    """The container that ECS starts for a role."""
    client = boto3.client("ecs")
    [service] = client.describe_services(cluster="downloader-staging", services=[role])["services"]
    definition = client.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
    [container] = [found for found in definition["containerDefinitions"] if found["name"] == role]
    return dict(container)


def settings(container: dict[str, Any]) -> Settings:
    environ = {pair["name"]: pair["value"] for pair in container["environment"]}
    secrets = {pair["name"]: f"the-secret-{pair['name']}" for pair in container.get("secrets", [])}
    return load_settings(None, environ=environ | secrets, overrides={})


def test_cfn_lint_finds_nothing() -> None:
    files = sorted(TEMPLATES.glob("*.yaml"))
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), *files],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.usefixtures("outputs")
@pytest.mark.parametrize("role", ["api", "processor", "notifier"])
def test_each_role_gets_a_configuration_that_the_service_takes(role: str) -> None:
    container = task(role)
    assert container["command"] == [role]
    read = settings(container)
    assert container["stopTimeout"] > max(read.processor.grace, read.notifier.grace) + 7
    assert read.redis.url == "rediss://cache.example:6379"
    assert (read.redis.durability, read.storage_name) == ("replicated", "s3")
    # Tokens are for the API alone, and queues for whom delivers or checks callbacks.
    assert [token.name for token in read.api.tokens] == (["clients", "metrics"] if role == "api" else [])
    assert (set(read.backends) == {"http", "sqs"}) == (role != "processor")


def test_files_and_callbacks_have_a_place(outputs: dict[str, str]) -> None:
    read = settings(task("notifier"))
    assert boto3.client("s3").head_bucket(Bucket=outputs["FilesBucket"])
    assert read.storage_section["bucket"] == outputs["FilesBucket"]
    assert read.backends["sqs"]["queues"] == [outputs["CallbacksQueue"]]
    assert boto3.client("sqs").get_queue_url(QueueName=outputs["CallbacksQueue"])
    assert outputs["ApiUrl"].startswith("http://")


def test_a_role_may_do_no_more_than_it_does(outputs: dict[str, str]) -> None:
    client = boto3.client("iam")
    allowed: dict[str, set[str]] = {}
    for role in client.list_roles()["Roles"]:
        name = role["RoleName"]
        if not name.startswith("downloader-staging-") or "Role" not in name:
            continue  # of the account's stack
        policies = [
            client.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            for policy in client.list_role_policies(RoleName=name)["PolicyNames"]
        ]
        documents = [yaml.safe_load(policy) if isinstance(policy, str) else policy for policy in policies]
        actions = [row["Action"] for document in documents for row in document["Statement"]]
        kind = next(kind for kind in ("Api", "Processor", "Notifier", "Execution") if f"{kind}Role" in name)
        allowed[kind] = {action for row in actions for action in ([row] if isinstance(row, str) else row)}
    assert allowed == {
        "Api": {"logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"},
        "Processor": {"s3:PutObject", "s3:AbortMultipartUpload"},
        "Notifier": {"s3:DeleteObject", "s3:AbortMultipartUpload", "sqs:SendMessage", "sqs:GetQueueUrl"},
        "Execution": {"secretsmanager:GetSecretValue"},
    }


def test_the_store_forgets_no_job() -> None:
    resources = template_of("service")["Resources"]
    assert resources["CacheParameters"]["Properties"]["Properties"]["maxmemory-policy"] == "noeviction"
    cache = resources["Cache"]["Properties"]
    assert cache["CacheParameterGroupName"] == {"Ref": "CacheParameters"}
    # With durability = "replicated" no job is accepted while there is no replica.
    assert cache["NumCacheClusters"] >= 2
    assert cache["AutomaticFailoverEnabled"]
    assert cache["MultiAZEnabled"]


@pytest.mark.parametrize("resource", ["Files", "Callbacks", "CallbacksNotHandled", "Cache"])
def test_data_outlives_the_stack(resource: str) -> None:
    found = template_of("service")["Resources"][resource]
    kept = "Snapshot" if resource == "Cache" else "Retain"
    assert (found["DeletionPolicy"], found["UpdateReplacePolicy"]) == (kept, kept)


@pytest.mark.usefixtures("outputs")
def test_the_load_balancer_does_not_ask_the_store() -> None:
    [group] = boto3.client("elbv2").describe_target_groups()["TargetGroups"]
    assert (group["HealthCheckPath"], group["Port"]) == ("/hb", 8000)


@pytest.mark.usefixtures("outputs")
@pytest.mark.parametrize("role", ["api", "processor"])
def test_jobs_bring_no_bucket_as_the_rights_are_for_one(role: str) -> None:
    assert settings(task(role)).processor.s3.buckets == []


@pytest.mark.usefixtures("aws")
def test_a_workflow_gets_its_rights_in_two_steps() -> None:
    outputs = create("account", "account", Environment="staging", GitHubRepository="someone/downloader")
    client = boto3.client("iam")

    def trust(arn: str) -> dict[str, Any]:
        document = client.get_role(RoleName=arn.rpartition("/")[2])["Role"]["AssumeRolePolicyDocument"]
        [statement] = document["Statement"]
        return dict(statement)

    first = trust(outputs["IdentityRoleArn"])
    assert first["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert "repo:someone/downloader:environment:staging" in json.dumps(first["Condition"])
    assert trust(outputs["DeployRoleArn"])["Principal"] == {"AWS": outputs["IdentityRoleArn"]}
    assert trust(outputs["StackRoleArn"])["Principal"] == {"Service": "cloudformation.amazonaws.com"}
    assert outputs["RepositoryUri"].endswith("/downloader-staging")

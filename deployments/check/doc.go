// Package check holds the tests of everything in deployments that can be tested
// without a container engine or a cluster:
//
//   - the compose file is loaded by compose-go;
//   - the chart is linted and rendered by Helm, and every manifest strictly decoded
//     into the types of Kubernetes' API;
//   - the Dockerfile's build is run step by step, and what it made looked at;
//   - the units are verified by systemd-analyze, rules and queries by promtool, the
//     balancer's configuration by haproxy, where they are (.ci/tools gets the latter
//     two; with CI=true their absence is a failure);
//   - the environment that all of these give is given to the programs, which must
//     accept it;
//   - the commands in docs/deploying.md are run.
//
// It is a module of its own, and a workspace of its own, so that none of what this
// needs gets near the programs. It knows them by running them. What needs a running
// Fairhook, its metrics and the runbooks, is tested in the tree's root.
package check

package check

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the settings into values.schema.json anew")

const chart = "deployments/helm/fairhook"

// kubernetes is the version that the chart is rendered for: a released Helm knows
// one, and one that Go builds from source does not.
const kubernetes = "34"

var buildHelm = sync.OnceValue(func() error {
	chartutil := "helm.sh/helm/v3/pkg/chartutil"
	command := exec.Command("go", "build", "-o", filepath.Join(scratch, "helm"),
		"-ldflags", "-X "+chartutil+".k8sVersionMajor=1 -X "+chartutil+".k8sVersionMinor="+kubernetes, "helm.sh/helm/v3/cmd/helm")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build helm: %w\n%s", err, output)
	}
	return nil
})

// helm runs Helm, which has nothing of this machine's to go by.
func helm(t *testing.T, arguments ...string) (stdout string, err error) {
	t.Helper()
	if err := buildHelm(); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), filepath.Join(scratch, "helm"), arguments...)
	command.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	var stderr strings.Builder
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		err = fmt.Errorf("helm %s: %w\n%s", strings.Join(arguments, " "), err, stderr.String())
	}
	return string(output), err
}

// valueSets are what the chart is rendered with.
func valueSets() map[string][]string {
	return map[string][]string{
		"Nothing":    nil,
		"Everything": {"--values=testdata/everything.yaml"},
		"Bare":       {"--values=testdata/bare.yaml"},
	}
}

var decoder = sync.OnceValue(func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
})

// release is a rendered chart, every manifest decoded strictly.
type release struct {
	objects  []metav1.Object
	monitors []*unstructured.Unstructured
}

// render renders the chart as a release called name.
func render(t *testing.T, name string, arguments ...string) release {
	t.Helper()
	output, err := helm(t, append([]string{"template", name, absolute(t, chart), "--namespace=hooks"}, arguments...)...)
	if err != nil {
		t.Fatal(err)
	}
	var r release
	documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(output)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		if kind.Kind == "" {
			continue // comments only
		}
		if kind.Kind == "ServiceMonitor" {
			monitor := &unstructured.Unstructured{}
			if err := yaml.UnmarshalStrict(document, &monitor.Object); err != nil {
				t.Fatal(err)
			}
			r.monitors = append(r.monitors, monitor)
			continue
		}
		object, _, err := decoder().Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		r.objects = append(r.objects, object.(metav1.Object))
	}
	if len(r.objects) == 0 {
		t.Fatal("nothing was rendered")
	}
	return r
}

// all are the objects of a type.
func all[T metav1.Object](r release) []T {
	var found []T
	for _, object := range r.objects {
		if o, is := object.(T); is {
			found = append(found, o)
		}
	}
	return found
}

// pods are the templates of all pods, by component.
func (r release) pods() map[string]corev1.PodTemplateSpec {
	found := map[string]corev1.PodTemplateSpec{}
	for _, d := range all[*appsv1.Deployment](r) {
		found[d.Labels["app.kubernetes.io/component"]] = d.Spec.Template
	}
	for _, j := range all[*batchv1.Job](r) {
		found[j.Labels["app.kubernetes.io/component"]] = j.Spec.Template
	}
	return found
}

// selected are the components whose pods a selector matches.
func (r release) selected(t *testing.T, selector *metav1.LabelSelector) []string {
	t.Helper()
	matcher, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for component, pod := range r.pods() {
		if matcher.Matches(labels.Set(pod.Labels)) {
			found = append(found, component)
		}
	}
	slices.Sort(found)
	return found
}

// envOf is a container's environment, and the names of those that are secrets.
func envOf(container corev1.Container) (env map[string]string, secrets []string) {
	env = map[string]string{}
	for _, variable := range container.Env {
		env[variable.Name] = variable.Value
		if variable.ValueFrom != nil && variable.ValueFrom.SecretKeyRef != nil {
			env[variable.Name] = "from " + variable.ValueFrom.SecretKeyRef.Name + "/" + variable.ValueFrom.SecretKeyRef.Key
			secrets = append(secrets, variable.Name)
		}
	}
	return env, secrets
}

func TestTheChartPassesLint(t *testing.T) {
	t.Parallel()
	for name, values := range valueSets() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if output, err := helm(t, append([]string{"lint", "--strict", absolute(t, chart)}, values...)...); err != nil {
				t.Errorf("%v\n%s", err, output)
			}
		})
	}
}

func TestTheChartRefusesValuesThatCannotWork(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ set, says string }{
		"AValueThatItDoesNotHave":    {"ingest.replica=3", "replica"},
		"ASettingThatNobodyHas":      {"settings.max-bodybytes=1", "max-bodybytes"},
		"ASettingOfOneForAll":        {"settings.workers=1", "workers"},
		"ASettingOfTheOtherProgram":  {"dispatcher.settings.max-body-bytes=1", "max-body-bytes"},
		"ASecretInPlainText":         {"settings.database-url=postgres://", "database-url"},
		"ASettingThatTheChartMakes":  {"ingest.settings.shutdown-timeout=1s", "shutdown-timeout"},
		"NoSecretForTheDatabase":     {"secrets.database-url.name=", "database-url"},
		"ANumberAsText":              {"ingest.settings.max-body-bytes=many", "max-body-bytes"},
		"ADrainLongerThanTheStop":    {"dispatcher.drainSeconds=25", "dispatcher.shutdownSeconds"},
		"ADelayLongerThanTheStop":    {"ingest.shutdownDelaySeconds=30", "ingest.shutdownSeconds"},
		"AnIngressWithoutAHost":      {"ingest.ingress.enabled=true", "ingest.ingress.hosts"},
		"ATagInTheDigest":            {"image.digest=v1", "digest"},
		"AMetricWithoutAName":        {"dispatcher.autoscaling.metric.name=", "name"},
		"NoPortOfTheDatabase":        {"networkPolicy.databasePorts=null,networkPolicy.enabled=maybe", "networkPolicy"},
		"ADisruptionBudgetOfNothing": {"ingest.disruptionBudget.maxUnavailable=some", "maxUnavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := helm(t, "template", "hooks", absolute(t, chart), "--set", test.set); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("helm says: %v", err)
			}
		})
	}
}

func TestTheChart(t *testing.T) {
	t.Parallel()
	for name, values := range valueSets() {
		t.Run("With"+name, func(t *testing.T) {
			t.Parallel()
			r := render(t, "hooks", values...)
			t.Run("RunsTheProgramsWithSettingsThatTheyAccept", func(t *testing.T) { t.Parallel(); r.checkPrograms(t) })
			t.Run("GivesPodsNoMoreRightsThanTheyNeed", func(t *testing.T) { t.Parallel(); r.checkSecurity(t) })
			t.Run("RefersToWhatIsThere", func(t *testing.T) { t.Parallel(); r.checkReferences(t) })
			t.Run("KillsNothingThatIsStillStopping", func(t *testing.T) { t.Parallel(); r.checkStopping(t) })
			t.Run("HasValidNamesAndLabels", func(t *testing.T) { t.Parallel(); r.checkNames(t) })
		})
	}

	t.Run("HasShortEnoughNamesForTheLongestRelease", func(t *testing.T) {
		t.Parallel()
		render(t, "r"+strings.Repeat("-long", 10)+"-5", "--values=testdata/everything.yaml").checkNames(t)
	})

	t.Run("HasOnlyWhatIsAskedFor", func(t *testing.T) {
		t.Parallel()
		count := func(values ...string) string {
			kinds := map[string]int{}
			r := render(t, "hooks", values...)
			for _, object := range r.objects {
				kinds[strings.TrimPrefix(fmt.Sprintf("%T", object), "*")]++
			}
			kinds["ServiceMonitor"] = len(r.monitors)
			text, err := json.Marshal(kinds)
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		for values, want := range map[string]string{
			"":                                  `{"ServiceMonitor":0,"v1.Deployment":2,"v1.Job":1,"v1.PodDisruptionBudget":2,"v1.Service":2,"v1.ServiceAccount":1}`,
			"--values=testdata/bare.yaml":       `{"ServiceMonitor":0,"v1.Deployment":2,"v1.Service":2}`,
			"--values=testdata/everything.yaml": `{"ServiceMonitor":2,"v1.Deployment":2,"v1.Ingress":1,"v1.Job":1,"v1.NetworkPolicy":3,"v1.PodDisruptionBudget":2,"v1.Service":2,"v1.ServiceAccount":1,"v2.HorizontalPodAutoscaler":2}`,
		} {
			if got := count(strings.Fields(values)...); got != want {
				t.Errorf("with %q there are\n%s, want\n%s", values, got, want)
			}
		}
	})

	t.Run("GivesEveryProgramTheSecretsThatItUsesAndNoOthers", func(t *testing.T) {
		t.Parallel()
		r := render(t, "hooks", "--values=testdata/everything.yaml")
		for component, pod := range r.pods() {
			var want []string
			for variable, s := range settingsOf(t, component) {
				if s.Secret {
					want = append(want, variable)
				}
			}
			_, got := envOf(pod.Spec.Containers[0])
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s gets %v, want %v", component, got, want)
			}
		}
	})

	t.Run("WritesSettingsAsTheyAreWritten", func(t *testing.T) {
		t.Parallel()
		r := render(t, "hooks", "--values=testdata/everything.yaml")
		for component, want := range map[string]map[string]string{
			"ingest": {
				"FAIRHOOK_MAX_BODY_BYTES": "10485760", "FAIRHOOK_REQUIRE_HTTPS": "false", "FAIRHOOK_ADAPTIVE_WEBHOOK_FLOOR": "0",
				"FAIRHOOK_ALLOW_PRIVATE_TARGETS": "10.1.0.0/16,10.2.0.0/16", "FAIRHOOK_SHUTDOWN_DELAY": "5s",
			},
			"dispatcher": {
				"FAIRHOOK_WORKERS": "2000", "FAIRHOOK_REQUIRE_HTTPS": "true", "FAIRHOOK_BREAKER_FAILURES": "0", "FAIRHOOK_RETENTION": "7d",
				"FAIRHOOK_DRAIN_TIMEOUT": "60s", "FAIRHOOK_SHUTDOWN_TIMEOUT": "90s", "FAIRHOOK_DATABASE_URL": "from database/uri",
			},
			"migrate": {"FAIRHOOK_LOG_LEVEL": "debug", "FAIRHOOK_TIMEOUT": "600s"},
		} {
			env, _ := envOf(r.pods()[component].Spec.Containers[0])
			for variable, value := range want {
				if env[variable] != value {
					t.Errorf("%s gets %s=%q, want %q", component, variable, env[variable], value)
				}
			}
		}
	})

	t.Run("MigratesBeforeAnythingElseIsThere", func(t *testing.T) {
		t.Parallel()
		r := render(t, "hooks")
		job := all[*batchv1.Job](r)[0]
		if got := job.Annotations["helm.sh/hook"]; got != "pre-install,pre-upgrade" {
			t.Errorf("migrate runs on %q", got)
		}
		pod := job.Spec.Template.Spec
		// Neither of these exists yet when it runs for the first time.
		if pod.ServiceAccountName != "" || len(pod.Volumes) > 0 || len(pod.Containers[0].EnvFrom) > 0 {
			t.Error("migrate refers to more than secrets")
		}
		for _, variable := range pod.Containers[0].Env {
			if variable.ValueFrom != nil && variable.ValueFrom.SecretKeyRef == nil {
				t.Errorf("%s comes from elsewhere than a secret", variable.Name)
			}
		}
		limit := duration(t, setting{}, func() string { env, _ := envOf(pod.Containers[0]); return env["FAIRHOOK_TIMEOUT"] }())
		if time.Duration(*job.Spec.ActiveDeadlineSeconds)*time.Second < limit*time.Duration(*job.Spec.BackoffLimit+1) {
			t.Error("the job is ended before its tries are over")
		}
	})

	t.Run("ScalesIngestOnCPUAndDispatchersOnTheirMetric", func(t *testing.T) {
		t.Parallel()
		r := render(t, "hooks", "--values=testdata/everything.yaml", "--set=dispatcher.autoscaling.metric.name=some_metric")
		for _, h := range all[*autoscalingv2.HorizontalPodAutoscaler](r) {
			metric := h.Spec.Metrics[0]
			switch h.Labels["app.kubernetes.io/component"] {
			case "ingest":
				if metric.Resource == nil || metric.Resource.Name != corev1.ResourceCPU || *metric.Resource.Target.AverageUtilization != 70 || h.Spec.MaxReplicas != 10 {
					t.Errorf("ingest scales by %+v", metric)
				}
			case "dispatcher":
				if metric.External == nil || metric.External.Metric.Name != "some_metric" || metric.External.Target.AverageValue.String() != "350" ||
					metric.External.Metric.Selector.MatchLabels["namespace"] != "hooks" {
					t.Errorf("dispatchers scale by %+v", metric)
				}
			}
		}
		for _, d := range all[*appsv1.Deployment](r) {
			if d.Spec.Replicas != nil {
				t.Errorf("%s sets back what the autoscaler decided", d.Name)
			}
			if _, requested := d.Spec.Template.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU]; !requested {
				t.Errorf("%s requests no CPU, of which percent could be counted", d.Name)
			}
		}
	})

	t.Run("TellsHowManyConnectionsItNeeds", func(t *testing.T) {
		t.Parallel()
		// "helm template" does not show them.
		loaded, err := loader.Load(absolute(t, chart))
		if err != nil {
			t.Fatal(err)
		}
		values, err := chartutil.ToRenderValues(loaded, map[string]any{"dispatcher": map[string]any{"autoscaling": map[string]any{"enabled": true}}},
			chartutil.ReleaseOptions{Name: "hooks", Namespace: "hooks"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		files, err := engine.Render(loaded, values)
		if err != nil {
			t.Fatal(err)
		}
		if notes := files["fairhook/templates/NOTES.txt"]; !strings.Contains(notes, "Up to 2 ingest and 6 dispatchers need up to 82 connections") {
			t.Errorf("the notes are\n%s", notes)
		}
	})
}

func (r release) checkPrograms(t *testing.T) {
	for component, pod := range r.pods() {
		container := pod.Spec.Containers[0]
		if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 0 || container.Name != component {
			t.Errorf("%s has other containers", component)
		}
		if filepath.Dir(container.Command[0]) != "/usr/local/bin" || filepath.Base(container.Command[0]) != component {
			t.Errorf("%s runs %v", component, container.Command)
		}
		env, secrets := envOf(container)
		for _, variable := range secrets {
			// Of the right form, where accepts does not see to it.
			switch variable {
			case "FAIRHOOK_EGRESS_PROXY":
				env[variable] = "http://proxy.example.com:3128"
			case "FAIRHOOK_BOOTSTRAP_KEY":
				env[variable] = "first"
			}
		}
		accepts(t, container.Command, env)
		if component == "migrate" {
			continue
		}
		if port := listenPort(t, component); len(container.Ports) != 1 || fmt.Sprint(container.Ports[0].ContainerPort) != port || env["FAIRHOOK_LISTEN"] != ":"+port {
			t.Errorf("%s listens on %s, and its port is %+v", component, env["FAIRHOOK_LISTEN"], container.Ports)
		}
		for path, probe := range map[string]*corev1.Probe{"/livez": container.LivenessProbe, "/readyz": container.ReadinessProbe} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port.String() != container.Ports[0].Name {
				t.Errorf("%s is not asked for %s", component, path)
			}
		}
	}
}

func (r release) checkSecurity(t *testing.T) {
	yes := func(b *bool) bool { return b != nil && *b }
	no := func(b *bool) bool { return b != nil && !*b }
	for component, pod := range r.pods() {
		s := pod.Spec.SecurityContext
		if s == nil || !yes(s.RunAsNonRoot) || s.RunAsUser == nil || *s.RunAsUser == 0 || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s may be root, or has no seccomp profile: %+v", component, s)
		}
		if !no(pod.Spec.AutomountServiceAccountToken) || !no(pod.Spec.EnableServiceLinks) || pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC {
			t.Errorf("%s gets things of the cluster or the node", component)
		}
		c := pod.Spec.Containers[0]
		if s := c.SecurityContext; s == nil || !no(s.AllowPrivilegeEscalation) || !yes(s.ReadOnlyRootFilesystem) || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || s.Privileged != nil {
			t.Errorf("the container of %s is not hardened: %+v", component, s)
		}
		if c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s has no bounds: %+v", component, c.Resources)
		}
		if component == "migrate" {
			continue
		}
		for _, spread := range pod.Spec.TopologySpreadConstraints {
			if got := r.selected(t, spread.LabelSelector); !slices.Equal(got, []string{component}) {
				t.Errorf("%s spreads %v", component, got)
			}
		}
		if len(pod.Spec.TopologySpreadConstraints) != 2 {
			t.Errorf("%s does not spread over nodes and zones", component)
		}
	}
}

func (r release) checkReferences(t *testing.T) {
	accounts := []string{"default"}
	for _, a := range all[*corev1.ServiceAccount](r) {
		accounts = append(accounts, a.Name)
	}
	deployments := map[string]string{} // by name: component
	for _, d := range all[*appsv1.Deployment](r) {
		component := d.Labels["app.kubernetes.io/component"]
		deployments[d.Name] = component
		if got := r.selected(t, d.Spec.Selector); !slices.Equal(got, []string{component}) {
			t.Errorf("the deployment of %s selects %v", component, got)
		}
		if !slices.Contains(accounts, d.Spec.Template.Spec.ServiceAccountName) {
			t.Errorf("%s wants the account %q", component, d.Spec.Template.Spec.ServiceAccountName)
		}
	}
	serviceNames := map[string]*corev1.Service{}
	for _, s := range all[*corev1.Service](r) {
		component := s.Labels["app.kubernetes.io/component"]
		serviceNames[s.Name] = s
		if got := r.selected(t, &metav1.LabelSelector{MatchLabels: s.Spec.Selector}); !slices.Equal(got, []string{component}) {
			t.Errorf("the service of %s selects %v", component, got)
		}
		if port := r.pods()[component].Spec.Containers[0].Ports[0].Name; s.Spec.Ports[0].TargetPort.String() != port {
			t.Errorf("the service of %s leads to the port %s", component, s.Spec.Ports[0].TargetPort.String())
		}
	}
	for _, b := range all[*policyv1.PodDisruptionBudget](r) {
		if got := r.selected(t, b.Spec.Selector); !slices.Equal(got, []string{b.Labels["app.kubernetes.io/component"]}) {
			t.Errorf("the disruption budget %s is about %v", b.Name, got)
		}
	}
	for _, p := range all[*networkingv1.NetworkPolicy](r) {
		component := p.Labels["app.kubernetes.io/component"]
		if got := r.selected(t, &p.Spec.PodSelector); !slices.Equal(got, []string{component}) {
			t.Errorf("the network policy of %s is about %v", component, got)
		}
		if ports := r.pods()[component].Spec.Containers[0].Ports; len(ports) > 0 && (len(p.Spec.Ingress) != 1 || p.Spec.Ingress[0].Ports[0].Port.IntVal != ports[0].ContainerPort) {
			t.Errorf("the network policy of %s lets nobody in to its port", component)
		}
	}
	for _, h := range all[*autoscalingv2.HorizontalPodAutoscaler](r) {
		if deployments[h.Spec.ScaleTargetRef.Name] != h.Labels["app.kubernetes.io/component"] {
			t.Errorf("%s scales %q", h.Name, h.Spec.ScaleTargetRef.Name)
		}
	}
	for _, i := range all[*networkingv1.Ingress](r) {
		for _, rule := range i.Spec.Rules {
			for _, path := range rule.HTTP.Paths {
				if s := serviceNames[path.Backend.Service.Name]; s == nil || s.Spec.Ports[0].Name != path.Backend.Service.Port.Name {
					t.Errorf("%s%s leads to %+v", rule.Host, path.Path, path.Backend.Service)
				}
			}
		}
	}
	for _, m := range r.monitors {
		r.checkMonitor(t, m)
	}
}

// checkMonitor reads a ServiceMonitor by hand: its type is the Prometheus operator's.
func (r release) checkMonitor(t *testing.T, m *unstructured.Unstructured) {
	t.Helper()
	if m.GetAPIVersion() != "monitoring.coreos.com/v1" {
		t.Errorf("%s is of %s", m.GetName(), m.GetAPIVersion())
	}
	spec, _, _ := unstructured.NestedMap(m.Object, "spec")
	if got := slices.Sorted(maps.Keys(spec)); !slices.Equal(got, []string{"endpoints", "selector"}) {
		t.Errorf("%s has %v", m.GetName(), got)
	}
	wanted, _, _ := unstructured.NestedStringMap(m.Object, "spec", "selector", "matchLabels")
	component := m.GetLabels()["app.kubernetes.io/component"]
	matches := 0
	for _, s := range all[*corev1.Service](r) {
		if labels.SelectorFromSet(wanted).Matches(labels.Set(s.Labels)) {
			matches++
			if s.Labels["app.kubernetes.io/component"] != component {
				t.Errorf("%s selects %s", m.GetName(), s.Name)
			}
		}
	}
	endpoints, _, _ := unstructured.NestedSlice(m.Object, "spec", "endpoints")
	if matches != 1 || len(endpoints) != 1 {
		t.Fatalf("%s selects %d services, and has %v", m.GetName(), matches, endpoints)
	}
	want := map[string]any{
		"port": "http", "path": "/metrics", "interval": "15s",
		"relabelings": []any{map[string]any{"action": "replace", "targetLabel": "job", "replacement": "fairhook-" + component}},
	}
	if fmt.Sprint(endpoints[0]) != fmt.Sprint(want) {
		t.Errorf("%s has the endpoint %v, want %v", m.GetName(), endpoints[0], want)
	}
}

func (r release) checkStopping(t *testing.T) {
	for component, pod := range r.pods() {
		if component == "migrate" {
			continue
		}
		env, _ := envOf(pod.Spec.Containers[0])
		stopping := duration(t, settingsOf(t, component)["FAIRHOOK_SHUTDOWN_TIMEOUT"], env["FAIRHOOK_SHUTDOWN_TIMEOUT"])
		var grace time.Duration
		if seconds := pod.Spec.TerminationGracePeriodSeconds; seconds != nil {
			grace = time.Duration(*seconds) * time.Second
		}
		if grace < stopping+5*time.Second {
			t.Errorf("%s stops within %v and is killed after %v", component, stopping, grace)
		}
	}
}

func (r release) checkNames(t *testing.T) {
	names := map[string]bool{}
	for _, object := range r.objects {
		if problems := utilvalidation.IsDNS1123Label(object.GetName()); len(problems) > 0 {
			t.Errorf("%q: %v", object.GetName(), problems)
		}
		id := fmt.Sprintf("%T %s", object, object.GetName())
		if names[id] {
			t.Errorf("there are two: %s", id)
		}
		names[id] = true
		if problems := validation.ValidateLabels(object.GetLabels(), field.NewPath("labels")); len(problems) > 0 {
			t.Errorf("%s: %v", id, problems)
		}
	}
	for component, pod := range r.pods() {
		if problems := validation.ValidateLabels(pod.Labels, field.NewPath("labels")); len(problems) > 0 {
			t.Errorf("%s: %v", component, problems)
		}
		if image := pod.Spec.Containers[0].Image; !regexp.MustCompile(`^[a-z0-9./-]+(:[\w.-]+|@sha256:[0-9a-f]{64})$`).MatchString(image) {
			t.Errorf("%s has the image %q", component, image)
		}
	}
}

// ofTheChart are settings that the chart makes from values of its own.
var ofTheChart = map[string][]string{
	"ingest":     {"listen", "shutdown-delay", "shutdown-timeout"},
	"dispatcher": {"listen", "drain-timeout", "shutdown-timeout"},
}

// settingsSchema describes the settings that are values and that all of these
// programs have, in the words of the last.
func settingsSchema(t *testing.T, programs ...string) map[string]any {
	t.Helper()
	properties, had := map[string]any{}, map[string]int{}
	for _, name := range programs {
		for _, s := range settingsOf(t, name) {
			had[s.Flag]++
			if s.Secret || slices.Contains(ofTheChart[name], s.Flag) || had[s.Flag] < len(programs) {
				continue
			}
			property := map[string]any{"description": s.Usage}
			text := map[string]any{"type": "string", "minLength": 1}
			switch s.Type {
			case "int":
				property["type"] = "integer"
			case "bool":
				property["type"] = "boolean"
			case "list", "cidrs":
				property["anyOf"] = []any{text, map[string]any{"type": "array", "items": text, "minItems": 1}}
			case "duration", "string":
				maps.Copy(property, text)
			default:
				t.Fatalf("%s is of an unknown type, %s", s.Flag, s.Type)
			}
			if s.Default != "" {
				property["default"] = s.Default
			}
			properties[s.Flag] = property
		}
	}
	return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
}

// The schema of the values knows the settings that the programs have, no others, and
// every secret of theirs. "make docs" writes the former anew.
func TestTheSchemaOfTheValuesKnowsTheSettings(t *testing.T) {
	t.Parallel()
	path := filepath.Join(root, chart, "values.schema.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	schema["$defs"] = map[string]any{
		"settings":   settingsSchema(t, "ingest", "dispatcher"),
		"ingest":     settingsSchema(t, "ingest"),
		"dispatcher": settingsSchema(t, "dispatcher"),
	}
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(schema); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want.String() != string(text) {
		t.Error(`values.schema.json does not have the settings that the programs have; "make docs" writes them`)
	}
	secrets, _, err := unstructured.NestedMap(schema, "properties", "secrets", "properties")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range services {
		for _, s := range settingsOf(t, name) {
			if s.Secret && secrets[s.Flag] == nil {
				t.Errorf("secrets has no %s", s.Flag)
			}
		}
	}
}
